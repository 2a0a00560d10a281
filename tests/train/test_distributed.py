"""Two processes on this machine against one with the same global batch."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_fixtures import environment, losses, mobilemoe

from mobilemoe_mlx.train import state
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import load_recipe
from mobilemoe_mlx.train.run import train

pytestmark = pytest.mark.usefixtures("datasets_cache")

STAGES = ("pretrain", "sft", "qat")  # text, chat, and INT4
# float32 sums in another order: 1e-7 a step was measured, and what it grows to. INT4 rounding makes
# whole codes of it; at the recipe's high rate, percents within a few steps.
TOLERANCE = {"pretrain": 1e-5, "sft": 1e-5, "qat": 2e-3}
SETTINGS = ("optimizer.peak_lr=2e-3",)


def train_arguments(recipe: Path, run: Path, *settings: str) -> list[str]:
    stages = [argument for stage in STAGES for argument in ("--stage", stage)]
    values = [argument for value in (*SETTINGS, *settings) for argument in ("--set", value)]
    return ["train", str(recipe), "--run", str(run), *stages, *values]


def launch(command: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in two processes, as `mlx.launch` starts them."""
    launcher = Path(sys.executable).with_name("mlx.launch")
    port = random.SystemRandom().randrange(20_000, 32_000)
    prefix = [str(launcher), "-n", "2", "--backend", "ring", "--starting-port", str(port), "--"]
    # The launcher reads its standard input as fast as it gives: an open pipe gives nothing.
    process = subprocess.Popen(
        [*prefix, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(cache) | {"OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        output = process.stdout.read()
        return subprocess.CompletedProcess(command, process.wait(120), output)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def one(recipe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    train(load_recipe(recipe_path, SETTINGS, STAGES), run)
    return run


@pytest.fixture(scope="module")
def two(recipe_path, cache, one, tmp_path_factory) -> tuple[Path, str]:
    """A run of two processes that also accumulate, and what they printed."""
    run = tmp_path_factory.mktemp("two") / "run"
    arguments = train_arguments(recipe_path, run, "micro_batch_size=1", "keep_checkpoints=9")
    done = launch(mobilemoe(*arguments), cache)
    assert (run / "qat" / "model" / "config.json").exists(), done.stdout
    return run, done.stdout


def test_two_processes_have_the_losses_of_one(one: Path, two: tuple[Path, str]):
    for stage in STAGES:
        ours, theirs = losses(two[0], stage), losses(one, stage)
        assert ours.keys() == theirs.keys() == set(range(1, 9))
        assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=TOLERANCE[stage])
        ours, theirs = heldout_losses(two[0], stage), heldout_losses(one, stage)
        assert ours == pytest.approx(theirs, rel=TOLERANCE[stage])


def heldout_losses(run: Path, stage: str) -> list[float]:
    rows = read_metrics(run / stage / "metrics.jsonl")
    return [row["heldout_loss"] for row in rows if "heldout_loss" in row]


def test_the_global_batch_is_counted_once(one: Path, two: tuple[Path, str]):
    """The first step's counts are exact, and so its biases; norms of gradients agree."""
    first = [
        next(r for r in read_metrics(run / "pretrain" / "metrics.jsonl") if "loss" in r)
        for run in (two[0], one)
    ]
    for name in ("load_entropy", "max_load", "dead_experts"):
        assert first[0][name] == first[1][name]
    for name in ("loss", "z_loss", "grad_norm"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-5)


def test_weights_and_biases_agree(one: Path, two: tuple[Path, str]):
    ours, theirs = (
        load_file(run / "pretrain" / "checkpoints" / "step-00000008" / "weights.safetensors")
        for run in (two[0], one)
    )
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if name.endswith("expert_bias"):
            np.testing.assert_array_equal(ours[name], expected)
            assert np.abs(expected).max() > 1e-3
        else:
            assert np.abs(ours[name] - expected).mean() < 1e-4 * np.abs(expected).mean(), name


def test_only_the_first_process_shows_and_writes(two: tuple[Path, str]):
    run, output = two
    assert output.count("pretrain:   0%") == 1
    assert "Traceback" not in output
    for stage in STAGES:
        assert len(read_metrics(run / stage / "metrics.jsonl")) == 8 + 2 + 1  # and the summary


def test_one_process_goes_on_where_two_stopped(recipe_path, one, two, tmp_path):
    run, stage = tmp_path / "run", tmp_path / "run" / "pretrain"
    shutil.copytree(two[0], run)
    late = ("model", "checkpoints/step-00000006", "checkpoints/step-00000008")
    for folder in (run / "sft", run / "qat", *(stage / name for name in late)):
        shutil.rmtree(folder)
    assert state.latest(stage / "checkpoints") == stage / "checkpoints" / "step-00000004"
    train(load_recipe(recipe_path, SETTINGS, ["pretrain"]), run, resume=True)
    ours, theirs = losses(run, "pretrain"), losses(one, "pretrain")
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=TOLERANCE["pretrain"])


# --- what fails in one process ----------------------------------------------------------------

# The process of this rank fails at the end of `place`, a function or method.
FAIL = """
import os
from mobilemoe_mlx.errors import UserError
import {module} as module
if os.environ["MLX_RANK"] == "{rank}":
    original = module.{place}
    def failing(*args, **options):
        original(*args, **options)
        raise UserError("this disk is broken")
    module.{place} = failing
"""


def start_apart(command: Sequence[str], cache: Path, folder: Path) -> list[subprocess.Popen[str]]:
    """Two processes that know each other, without a launcher that ends one with the other."""
    port = random.SystemRandom().randrange(20_000, 32_000)
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port + rank}"] for rank in range(2)]))
    return [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(cache)
            | {"OPENBLAS_NUM_THREADS": "1", "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize(
    ("rank", "module", "place"),
    [
        (1, "mobilemoe_mlx.train.run", "open_stage"),
        (1, "mobilemoe_mlx.train.bookkeeping", "Bookkeeping.begin_step"),
        (0, "mobilemoe_mlx.train.bookkeeping", "state.save"),
        (0, "mobilemoe_mlx.train.stage", "_write_model"),
    ],
)
def test_an_error_in_one_process_ends_both(recipe_path, cache, tmp_path, rank, module, place):
    arguments = ("train", recipe_path, "--run", tmp_path / "run", "--stage", "pretrain")
    command = mobilemoe(*arguments, first=FAIL.format(rank=rank, module=module, place=place))
    processes = start_apart(command, cache, tmp_path)
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2, 2], errors
    assert "mobilemoe: this disk is broken" in errors[rank]
    assert f"Process {rank} of 2 stopped with an error of its own" in errors[1 - rank]
    assert "Traceback" not in "".join(errors)


def test_processes_that_see_other_checkpoints_are_refused(recipe_path, cache, one, tmp_path):
    """As where each machine has a folder of its own."""
    runs = [tmp_path / "0", tmp_path / "1"]
    shutil.copytree(one, runs[0])
    for name in ("model", "checkpoints/step-00000008"):
        shutil.rmtree(runs[0] / "pretrain" / name)
    shutil.copytree(runs[0], runs[1])
    shutil.rmtree(runs[1] / "pretrain" / "checkpoints" / "step-00000006")
    settings = [argument for value in SETTINGS for argument in ("--set", value)]
    arguments = ["train", str(recipe_path), "--stage", "pretrain", "--resume", *settings]
    own = (
        "import os, sys\n"
        f"sys.argv += ['--run', os.path.join({str(tmp_path)!r}, os.environ['MLX_RANK'])]"
    )
    processes = start_apart(mobilemoe(*arguments, first=own), cache, tmp_path)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    for error in errors:
        assert "The step to go on from differs between the processes (6, 0)" in error
