"""Programs of a model: what passes, what the limits stop, and that nothing is left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mobilemoe_mlx.evaluation.program_runner import CodeEval, Limits, passes

QUICK = Limits(cpu_seconds=1, wall_seconds=2)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def f(x):\n    return x + 1\nassert f(1) == 2", True),
        ("print('much' * 100_000)\nimport json, math", True),
        ("import sys\nassert sys.stdin.read() == ''", True),
        ("assert 1 == 2", False),
        ("def broken(:", False),
        ("import sys\nsys.exit(0)\nassert False", False),  # an end before the tests
        ("import os\nos._exit(0)", False),
        ("x = '\\ud800'\nassert len(x) == 1", True),
        ("\ud800", False),
    ],
)
def test_passes(program: str, expected: bool) -> None:
    assert passes(program, QUICK) is expected


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "x = bytearray(3 << 30)",
        "open('large', 'wb').write(bytes(2 << 20))",
    ],
    ids=["seconds", "sleep", "memory", "file"],
)
def test_limits(program: str) -> None:
    begin = time.perf_counter()
    assert not passes(program, QUICK)
    assert time.perf_counter() - begin < 20


def test_no_environment_and_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = tmp_path / "seen"
    program = (
        "import os\n"
        f"with open({str(seen)!r}, 'w') as file:\n"
        "    file.write(repr([sorted(os.environ), os.getcwd(), os.listdir('.')]))\n"
        "open('left', 'w').close()\n"
    )
    assert passes(program)
    names, folder, content = eval(seen.read_text())
    assert not {"HF_TOKEN", "PATH", "PYTHONPATH"} & set(names)
    assert content == [] and folder != os.getcwd() and not os.path.exists(folder)


def test_processes_that_a_program_started_end_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    program = (
        "import subprocess, sys\n"
        f"code = 'import sys, time; time.sleep(1.5); open(sys.argv[1], chr(119))'\n"
        f"subprocess.Popen([sys.executable, '-c', code, {str(mark)!r}])\n"
    )
    assert passes(program)
    time.sleep(2)
    assert not mark.exists()


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    right, wrong = "x = 1", "x = 2"
    rates, results = CodeEval().compute(
        references=["assert x == 1", "assert x == 1"],
        predictions=[[right, wrong, wrong], [right, right, wrong]],
        k=[1, 2, 4],
    )
    # Of 3 programs, 1 and 2 pass: any one does with 1/3 and 2/3, one of two with 2/3 and 1.
    assert rates == {"pass@1": pytest.approx(1 / 2), "pass@2": pytest.approx(5 / 6)}
    assert [result["passed"] for _, result in results[0]] == [True, False, False]


FORK = "import os, sys, time\nchild = os.fork()\n"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("if child:\n    os.waitpid(child, 0)", True),  # both come to the program's end
        ("if not child:\n    raise ValueError", True),
        ("if not child:\n    time.sleep(60)", True),
        ("if not child:\n    os.setsid()\n    time.sleep(4)\n    os._exit(0)", True),
        ("if child:\n    sys.exit(0)", False),
        ("if child:\n    os._exit(0)", False),
        ("if child:\n    raise ValueError\ntime.sleep(60)", False),
        ("if child:\n    time.sleep(60)", False),  # past the limit
    ],
)
def test_a_program_that_forks_is_judged_by_its_own_end(program: str, expected: bool) -> None:
    start = time.monotonic()
    assert passes(FORK + program, QUICK) is expected
    assert time.monotonic() - start < 3.5  # what it left is not waited for


def test_a_program_longer_than_a_pipe() -> None:
    assert passes(f"x = {chr(120) * 500_000!r}\nassert len(x) == 500_000", QUICK)


def test_what_a_program_forked_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert passes(
        f"{FORK}if not child:\n    time.sleep(1)\n    open({str(mark)!r}, 'w').close()", QUICK
    )
    time.sleep(1.5)
    assert not mark.exists()
