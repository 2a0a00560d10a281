"""The log of answers: bit for bit, torn lines, a process killed in the middle of writing."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mobilemoe_mlx
from mobilemoe_mlx.all_or_none import whole_folder
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation.answer_log import AnswerLog


def test_answers_come_back_bit_for_bit(tmp_path: Path) -> None:
    answers = [[-0.1 - 0.2, True], [-math.pi * 1e-300, False], [-math.inf, False], ["é\n\ud800", 1]]
    with AnswerLog(tmp_path / "log", "model") as log:
        assert log.get("key") is None
        log.put("key", answers)
    with AnswerLog(tmp_path / "log", "model") as log:
        assert log.get("key") == answers
    with AnswerLog(tmp_path / "log", "another model") as log:
        assert log.get("key") is None


@pytest.mark.parametrize("torn", [b'{"key": "x", "seco', b'{"key": "x"}\n', b"\0" * 512 + b"\n"])
def test_a_damaged_line_is_dropped_and_the_file_goes_on(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "log"
    with AnswerLog(path, "model") as log:
        log.put("first", [1.5])
    with path.open("ab") as file:
        file.write(torn)
    with AnswerLog(path, "model") as log:
        assert log.get("first") == [1.5] and log.get("x") is None
        log.put("second", [2.5])
    with AnswerLog(path, "model") as log:
        assert (log.get("first"), log.get("second")) == ([1.5], [2.5])


def test_what_is_answered_is_timed(tmp_path: Path) -> None:
    with AnswerLog(tmp_path / "log", "model") as log:
        assert log.get("key") is None
        time.sleep(0.02)
        log.put("key", [1, 2, 3])
        took = log.seconds
    with AnswerLog(tmp_path / "log", "model") as log:
        log.get("key")
        assert log.seconds == took >= 0.02


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with AnswerLog(tmp_path / "log", "model") as log:
        log.put("key", [1])
    with whole_folder(tmp_path / "folder") as new:
        (new / "file").touch()
    assert (tmp_path / "folder" / "file").exists()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        AnswerLog(tmp_path / "log", "model"),
        pytest.raises(UserError, match=f"Another process evaluates in {tmp_path} now"),
    ):
        AnswerLog(tmp_path / "log", "model")
    AnswerLog(tmp_path / "log", "model").close()


def test_a_killed_process_loses_nothing_that_it_put(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mobilemoe_mlx.evaluation.answer_log import AnswerLog\n"
        "log = AnswerLog(Path(sys.argv[1]), 'model')\n"
        "for number in range(10**9):\n"
        "    log.put(str(number), [number / 7] * 500)\n"
        "    print(number, flush=True)\n"
    )
    path = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(mobilemoe_mlx.__file__).parents[1])},
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 20:
            break
    process.send_signal(signal.SIGKILL)
    told = [20, *map(int, process.stdout.read().split())]
    process.wait()
    with AnswerLog(path, "model") as log:
        for number in range(max(told) + 1):
            assert log.get(str(number)) == [number / 7] * 500
