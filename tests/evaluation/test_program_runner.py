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


def test_what_leaves_the_session_is_not_waited_for() -> None:
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(4)\n    os._exit(0)"
    )
    start = time.monotonic()
    assert not passes(program, Limits(wall_seconds=1))
    assert time.monotonic() - start < 3
