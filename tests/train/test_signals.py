"""Ctrl-C and SIGTERM: a checkpoint first, then the status of a shell; checkpoints by the clock."""

from __future__ import annotations

import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training_fixtures import environment, losses, mobilemoe, run_command

from mobilemoe_mlx.train import bookkeeping, stage, state
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import load_recipe
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.train.signals import Stopped

pytestmark = pytest.mark.usefixtures("datasets_cache")

SETTINGS = ("tokens=5120", "checkpoint_every=100")  # 40 steps


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.001)


def steps_recorded(run: Path, count: int) -> Callable[[], bool]:
    file = run / "pretrain" / "metrics.jsonl"
    return lambda: file.exists() and file.read_bytes().count(b"\n") > count


def arguments(recipe: Path, run: Path) -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["train", str(recipe), "--run", str(run), "--stage", "pretrain", *settings]


def start(command: list[str], cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(cache),
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_first(recipe_path, cache, tmp_path, number: int, status: int):
    run = tmp_path / "a run"
    process = start(mobilemoe(*arguments(recipe_path, run)), cache)
    wait_until(steps_recorded(run, 4), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status
    assert "Traceback" not in err and "Once more stops at once" in err
    last = state.latest(run / "pretrain" / "checkpoints")
    assert last is not None and state.step_of(last) == max(losses(run, "pretrain")) < 40
    # The command that it prints, as it is typed.
    printed = out.splitlines()[-1]
    assert "Go on with:" in out and printed.endswith("--resume")
    words = shlex.split(printed)
    done = run_command(mobilemoe(*words[1:]), cache)
    assert done.returncode == 0, done.stderr
    assert losses(run, "pretrain").keys() == set(range(1, 41))
    if number == signal.SIGTERM:
        whole = tmp_path / "whole"
        train(load_recipe(recipe_path, SETTINGS, ["pretrain"]), whole)
        assert losses(run, "pretrain") == losses(whole, "pretrain")


def test_a_second_signal_stops_at_once(recipe_path: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    slow = (
        "import time\n"
        "from mobilemoe_mlx.train.step import Trainer\n"
        "original = Trainer.run\n"
        "Trainer.run = lambda *a: (time.sleep(60 if a[0].step else 0), original(*a))[1]\n"
    )
    process = start(mobilemoe(*arguments(recipe_path, run), first=slow), cache)
    wait_until(steps_recorded(run, 1), process)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "Once more stops at once" not in process.stderr.readline():
        pass
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM  # a shell says 143
    assert time.monotonic() - began < 30


def test_all_processes_stop_when_one_is_told(recipe_path: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    note = (
        "import os, pathlib\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['MLX_RANK']).write_text(str(os.getpid()))\n"
    )
    launcher = Path(sys.executable).with_name("mlx.launch")
    port = random.SystemRandom().randrange(20_000, 32_000)
    prefix = [str(launcher), "-n", "2", "--backend", "ring", "--starting-port", str(port), "--"]
    process = subprocess.Popen(
        [*prefix, *mobilemoe(*arguments(recipe_path, run), first=note)],
        stdin=subprocess.PIPE,  # the launcher reads it as fast as it gives: an open pipe
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(cache) | {"OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        wait_until(steps_recorded(run, 4), process)
        os.kill(int((tmp_path / "1").read_text()), signal.SIGTERM)
        assert process.stdout is not None
        output = process.stdout.read()
        process.wait(300)
    finally:
        process.kill()
    assert "mlx.launch -n 2 -- " in output and "--resume" in output, output
    assert "Traceback" not in output
    last = state.latest(run / "pretrain" / "checkpoints")
    assert last is not None and state.step_of(last) == max(losses(run, "pretrain")) < 40


@pytest.mark.parametrize("evaluation", [1, 2, 3])
def test_a_signal_during_an_evaluation(recipe_path, tmp_path, monkeypatch, evaluation: int):
    """It is left at once, and made up for on resumption."""
    recipe = load_recipe(recipe_path, ["evaluate_every=4"], ["pretrain"])
    calls = itertools.count(1)
    original = stage.heldout_loss

    def heldout_loss(*args, **options):
        if next(calls) == evaluation:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **options)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "heldout_loss", heldout_loss)
        with pytest.raises(Stopped) as stopped:
            train(recipe, tmp_path / "run")
    assert stopped.value.exit_status == 130
    assert signal.getsignal(signal.SIGINT) == before
    last = state.latest(tmp_path / "run" / "pretrain" / "checkpoints")
    assert last is not None and state.step_of(last) == (0, 4, 8)[evaluation - 1]
    train(recipe, tmp_path / "run", resume=True)
    train(recipe, tmp_path / "whole")
    found = [
        [row for row in read_metrics(run / "pretrain" / "metrics.jsonl") if "heldout_loss" in row]
        for run in (tmp_path / "run", tmp_path / "whole")
    ]
    assert found[0] == found[1] and [row["step"] for row in found[0]] == [0, 4, 8]


@pytest.mark.parametrize(
    ("minutes", "expected"), [("10", [0, 3, 6, 8]), ("0", [0, 8]), ("2", list(range(9)))]
)
def test_checkpoints_by_the_clock(recipe_path, tmp_path, monkeypatch, minutes, expected):
    """Steps of three minutes: after three of them a fourth would be more than ten unsaved."""
    clock = [0.0]
    original = bookkeeping.Bookkeeping.begin_step

    def begin_step(book: bookkeeping.Bookkeeping) -> None:
        original(book)
        clock[0] += 180

    monkeypatch.setattr(bookkeeping.Bookkeeping, "begin_step", begin_step)
    monkeypatch.setattr(bookkeeping.time, "monotonic", lambda: clock[0])
    settings = [
        "checkpoint_every=100",
        "keep_checkpoints=99",
        f"checkpoint_every_minutes={minutes}",
    ]
    train(load_recipe(recipe_path, settings, ["pretrain"]), tmp_path / "run")
    folder = tmp_path / "run" / "pretrain" / "checkpoints"
    assert [state.step_of(path) for path in state.all_checkpoints(folder)] == expected
