"""Stopping anywhere and going on: exact losses, whole checkpoints, clear refusals."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file
from training_fixtures import environment, losses, mobilemoe, run_command

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.train import state
from mobilemoe_mlx.train.metrics import Metrics, read_metrics
from mobilemoe_mlx.train.recipe import STAGES, load_recipe
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.train.step import Trainer

pytestmark = pytest.mark.usefixtures("datasets_cache")

# On one machine the same steps give the same bits, so losses and weights are compared exactly.


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, recipe_path: Path) -> Path:
    """A run of all four stages; do not write into it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(load_recipe(recipe_path), run)
    return run


def checkpoints(run: Path, stage: str) -> Path:
    return run / stage / "checkpoints"


def records(run: Path, stage: str) -> list[dict[str, Any]]:
    """All that the metrics hold but the clock's and the memory's part."""

    def timeless(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        measured = ("tokens_per_second", "seconds", "peak_memory")
        return {k: timeless(v) for k, v in value.items() if k not in measured}

    return [timeless(row) for row in read_metrics(run / stage / "metrics.jsonl")]


def assert_same_run(ours: Path, theirs: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Metrics, last checkpoints and exported models are equal to the bit."""
    for stage in stages:
        assert records(ours, stage) == records(theirs, stage)
        last = state.latest(checkpoints(theirs, stage))
        assert last is not None
        files = [*last.glob("*.safetensors"), theirs / stage / "model" / "model.safetensors"]
        assert len(files) == 3
        for file in files:
            expected = load_file(file) if file.parent == last else file.read_bytes()
            other = ours / file.relative_to(theirs)
            found = load_file(other) if file.parent == last else other.read_bytes()
            if isinstance(expected, bytes):
                assert found == expected, file.name
                continue
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert (ours / last.relative_to(theirs) / "state.json").read_text() == (
            last / "state.json"
        ).read_text()
    leftovers = [p for p in ours.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
    assert not leftovers


class Stop(Exception):
    """What the tests raise inside a run."""


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let `steps` steps be logged, in all stages together, and raise after the next one."""
    original, left = Metrics.step, [steps]

    def step(self: Metrics, record: dict[str, Any], tokens: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        original(self, record, tokens)

    patch.setattr(Metrics, "step", step)


# --- in one process ---------------------------------------------------------------------------


def test_the_runs_cross_the_ends_of_epochs(uninterrupted: Path):
    # What the next tests rely on.
    for stage in STAGES:
        last = state.latest(checkpoints(uninterrupted, stage))
        assert last is not None
        content = json.loads((last / "state.json").read_text())
        sources = content["data"]["mixture"].values()
        assert max(source["rows"]["epoch"] for source in sources) >= 1


@pytest.mark.parametrize("steps", [0, 1, 5, 11, 18, 24, 31])
def test_a_stopped_run_goes_on_exactly(recipe_path, uninterrupted, tmp_path, monkeypatch, steps):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            train(load_recipe(recipe_path), run)
    train(load_recipe(recipe_path), run, resume=True)
    assert_same_run(run, uninterrupted)


def test_a_run_goes_on_after_every_single_step(recipe_path, uninterrupted, tmp_path, monkeypatch):
    recipe = load_recipe(recipe_path, ["checkpoint_every=1"], ["pretrain"])
    for resume in (False, *[True] * 6):
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            with pytest.raises(Stop):
                train(recipe, tmp_path / "run", resume=resume)
    assert losses(tmp_path / "run", "pretrain").keys() == set(range(1, 8))
    train(recipe, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run", "pretrain") == losses(uninterrupted, "pretrain")
    assert records(tmp_path / "run", "pretrain") == records(uninterrupted, "pretrain")


def test_the_random_state_goes_on(recipe_path: Path, tmp_path: Path):
    recipe = load_recipe(recipe_path)
    trainer = Trainer(Model(recipe.model), recipe.stages["pretrain"])
    mx.random.seed(3)
    mx.random.normal((5,))
    saved = state.save(tmp_path, trainer, {}, keep=1)
    expected = mx.random.normal((5,)).tolist()
    mx.random.seed(4)
    state.load(saved, trainer)
    assert mx.random.normal((5,)).tolist() == expected


def test_old_checkpoints_go(recipe_path: Path, tmp_path: Path):
    overrides = ["checkpoint_every=1", "keep_checkpoints=3"]
    train(load_recipe(recipe_path, overrides, ["pretrain"]), tmp_path / "run")
    names = sorted(p.name for p in checkpoints(tmp_path / "run", "pretrain").iterdir())
    assert names == ["step-00000006", "step-00000007", "step-00000008"]


# --- what is refused --------------------------------------------------------------------------


@pytest.fixture
def stopped(recipe_path, uninterrupted, tmp_path, monkeypatch) -> Path:
    """A run stopped in the middle of its first stage, with checkpoints of steps 2 and 4."""
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            train(load_recipe(recipe_path), tmp_path / "run")
    return tmp_path / "run"


def test_an_existing_run_is_not_overwritten(recipe_path: Path, stopped: Path):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        train(load_recipe(recipe_path), stopped)
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before


def test_a_run_that_is_not_there_is_not_resumed(recipe_path: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no run to go on with: check --run"):
        train(load_recipe(recipe_path), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_another_folder_is_not_taken_for_a_run(recipe_path: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not a training run"):
        train(load_recipe(recipe_path), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_before_its_first_file_can_start_again(recipe_path: Path, tmp_path: Path):
    (tmp_path / "recipe.json.tmp").touch()
    train(load_recipe(recipe_path, stages=["pretrain"]), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["optimizer.peak_lr=2e-3"], ["optimizer.peak_lr"]),
        (["batch_size=2", "data.seed=5"], ["batch_size", "data.seed"]),
        (["routing.z_loss=0", "compute.dtype=bfloat16"], ["routing.z_loss", "compute.dtype"]),
        (["routing.capacity_factor=1.5"], ["capacity_factor was not given and is 1.5"]),
        (["tokens=2048"], ["tokens"]),
        (["model.num_hidden_layers=1"], ["num_hidden_layers"]),
    ],
)
def test_a_changed_recipe_is_refused(recipe_path, stopped, overrides, names):
    with pytest.raises(UserError) as error:
        train(load_recipe(recipe_path, overrides), stopped, resume=True)
    assert all(name in str(error.value) for name in names)
    assert " was " in str(error.value)


def test_a_changed_mixture_file_is_refused(recipe_path: Path, stopped: Path):
    recipe = load_recipe(recipe_path)
    mixture = recipe.path(recipe.stages["pretrain"].data.mixture)
    text = mixture.read_text()
    try:
        mixture.write_text(text.replace("weight = 1.0", "weight = 1.5"))
        with pytest.raises(UserError, match=r"\(data\.sources\.two\.weight was 1\.0 and is 1\.5\)"):
            train(recipe, stopped, resume=True)
        mixture.write_text(text[: text.rindex("[[sources]]")])
        with pytest.raises(UserError, match=r"\(data\.sources\.two differs\)"):
            train(recipe, stopped, resume=True)
        mixture.write_text(f"{text}# a comment changes nothing\n")
        train(recipe, stopped, resume=True)
    finally:
        mixture.write_text(text)


def test_another_tokenizer_is_refused(recipe_path, stopped, tokenizer_folder, tmp_path):
    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, other)
    recipe = load_recipe(recipe_path, [f"tokenizer.path={other}"])
    content = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(content | {"truncation": None}) + "\n")
    with pytest.raises(UserError, match="another tokenizer"):
        train(recipe, stopped, resume=True)


def test_what_does_not_change_the_losses_may_change(recipe_path, stopped, uninterrupted):
    overrides = [
        "checkpoint_every=3",
        "keep_checkpoints=4",
        "evaluate_every=5",
        "micro_batch_size=2",
    ]
    train(load_recipe(recipe_path, overrides), stopped, resume=True)
    ours, theirs = losses(stopped, "pretrain"), losses(uninterrupted, "pretrain")
    # Micro-batches add up in another order: float32 rounding, through a few steps.
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5)


def test_resuming_a_finished_run_does_nothing(recipe_path: Path, uninterrupted: Path):
    def files() -> dict[Path, tuple[int, bytes]]:
        paths = [p for p in uninterrupted.rglob("*") if p.is_file() and p.name != "recipe.json"]
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}

    before, recipe = files(), (uninterrupted / "recipe.json").read_bytes()
    folder = train(load_recipe(recipe_path), uninterrupted, resume=True)
    assert folder == uninterrupted / "qat" / "model"
    assert files() == before and (uninterrupted / "recipe.json").read_bytes() == recipe


def test_a_later_stage_waits_for_an_unfinished_one(recipe_path: Path, stopped: Path):
    with pytest.raises(UserError, match="pretrain is not finished"):
        train(load_recipe(recipe_path, stages=["sft"]), stopped)


# --- damage and full disks --------------------------------------------------------------------


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def overwrite(file: Path) -> None:
    file.write_bytes(b"\0" * 1000)


@pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_says_what_to_do(
    recipe_path, stopped, uninterrupted, name: str, damage: Callable[[Path], None]
):
    last = state.latest(checkpoints(stopped, "pretrain"))
    assert last is not None and last.name == "step-00000004"
    damage(last / name)
    with pytest.raises(UserError, match=r"step-00000004 is damaged.*delete it and resume"):
        train(load_recipe(recipe_path), stopped, resume=True)
    shutil.rmtree(last)
    train(load_recipe(recipe_path, stages=["pretrain"]), stopped, resume=True)
    assert_same_run(stopped, uninterrupted, ("pretrain",))


@pytest.mark.parametrize("at", ["weights", "optimizer", "state", "flush", "metrics", "export"])
def test_a_full_disk_leaves_the_last_checkpoint(
    recipe_path, uninterrupted, tmp_path, monkeypatch, at: str
):
    full = OSError(errno.ENOSPC, "No space left on device")
    run, calls = tmp_path / "run", [0]

    def failing(original: Callable[..., Any], first: int) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] >= first:
                raise full
            return original(*args, **options)

        return call

    with monkeypatch.context() as patch:
        # The checkpoints of steps 0, 2 and 4 fit, that of step 6 does not.
        match at:
            case "weights":
                patch.setattr(state, "save_file", failing(state.save_file, 7))
            case "optimizer":
                patch.setattr(state, "save_file", failing(state.save_file, 8))
            case "state":
                others, write = Path.write_text, failing(Path.write_text, 4)

                def write_text(path: Path, *args: Any, **options: Any) -> int:
                    return (write if path.name == "state.json" else others)(path, *args, **options)

                patch.setattr(Path, "write_text", write_text)
            case "flush":
                patch.setattr(state, "_flush", failing(state._flush, 3 * 4 + 1))
            case "metrics":
                patch.setattr(Metrics, "write", failing(Metrics.write, 7))
            case "export":
                patch.setattr(
                    "mobilemoe_mlx.checkpoint.folder.write_file", failing(lambda: None, 1)
                )
        with pytest.raises(UserError, match="No space left on device"):
            train(load_recipe(recipe_path, stages=["pretrain"]), run)
    folder = checkpoints(run, "pretrain")
    assert not [p for p in run.rglob("*") if p.name.startswith(".")]
    last = state.latest(folder)
    assert last is not None and last.name == f"step-0000000{8 if at == 'export' else 4}"
    assert np.isfinite(load_file(last / "weights.safetensors")["model.norm.weight"]).all()
    train(load_recipe(recipe_path, stages=["pretrain"]), run, resume=True)
    assert_same_run(run, uninterrupted, ("pretrain",))


def test_the_report_of_qat_is_not_lost(recipe_path: Path, tmp_path: Path, monkeypatch):
    """A stage counts as finished only when all that it leaves is there."""
    run, recipe = tmp_path / "run", load_recipe(recipe_path, stages=["qat"])
    train(load_recipe(recipe_path, stages=["pretrain"]), run)  # what QAT starts from
    original = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if target.name == "quantization.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(UserError, match="No space left on device"):
            train(recipe, run)
    train(recipe, run, resume=True)
    assert (run / "qat" / "quantization.json").exists()
    assert (run / "qat" / "model" / "config.json").exists()


def test_a_limit_on_file_sizes_is_told_plainly(recipe_path, cache, tmp_path):
    """A real write error, from the operating system, in a process of its own."""
    run = tmp_path / "run"

    # Writes beyond the limit fail with EFBIG once the signal is ignored.
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))\n"
    )
    arguments = ("train", recipe_path, "--run", run, "--stage", "pretrain")
    done = run_command(mobilemoe(*arguments, first=limit), cache)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Could not write the checkpoint" in done.stderr and "File too large" in done.stderr
    assert "There is no earlier one" in done.stderr
    assert not list(checkpoints(run, "pretrain").iterdir())


# --- kill -9 ----------------------------------------------------------------------------------


def test_kill_9_at_any_moment(recipe_path, uninterrupted, cache, tmp_path):
    """The real thing: the command, killed again and again, some of it while it writes."""
    run, rng = tmp_path / "run", random.Random(0)
    begin = mobilemoe("train", recipe_path, "--run", run, "--set", "checkpoint_every=1")

    def command() -> list[str]:
        return [*begin, "--resume"] if (run / "recipe.json").is_file() else begin

    def writing() -> bool:
        return any(run.glob("*/checkpoints/.writing-*"))

    def steps(stage: str, count: int) -> Callable[[], bool]:
        file = run / stage / "metrics.jsonl"

        def reached() -> bool:
            try:
                return file.read_bytes().count(b"\n") > count
            except FileNotFoundError:  # not begun, or a fresh start removes it just now
                return False

        return reached

    moments: list[tuple[Callable[[], bool], float]] = [
        (run.exists, 0.05 * rng.random()),
        (writing, 0.0),
        (steps("pretrain", 5), 0.05 * rng.random()),
        ((run / "qat" / ".model.partial").exists, 0.0),
    ]
    killed = 0
    for moment, delay in moments:
        process = subprocess.Popen(
            command(), env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not moment():
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    done = run_command(command(), cache)
    assert done.returncode == 0, done.stderr
    assert killed >= 3, killed
    assert_same_run(run, uninterrupted)
