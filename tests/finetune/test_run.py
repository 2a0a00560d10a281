"""Whole runs: what they leave, stopping anywhere and going on, early stopping, clear refusals."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from finetune_fixtures import SHORT, write_conversations
from safetensors.numpy import load_file
from training_fixtures import environment, mobilemoe, run_command

from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.machine_memory import MachineMemory
from mobilemoe_mlx.finetune.run import FinetuneOptions, finetune
from mobilemoe_mlx.finetune.run_info import describe_finetuning
from mobilemoe_mlx.train import state
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import load_recipe
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.train.run_info import describe_run
from mobilemoe_mlx.train.run_lock import RunLock
from mobilemoe_mlx.train.step import Trainer

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "mine.jsonl")


def short_run(
    base: Path, data: Path, run: Path, *overrides: str, method: str | None = None, **options: Any
) -> Path:
    given = FinetuneOptions(method=method, overrides=(*SHORT, *overrides), **options)
    result = finetune(str(base), str(data), run, given, lambda _: None)
    assert result is not None
    return result


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, bf16_folder: Path, conversations: Path
) -> Path:
    """A run with dropout; do not write into it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    short_run(bf16_folder, conversations, run, "adapter.dropout=0.1")
    return run


def records(run: Path) -> list[dict[str, Any]]:
    """All that the metrics hold but the clock's and the memory's part."""

    def timeless(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        measured = ("tokens_per_second", "seconds", "peak_memory")
        return {k: timeless(v) for k, v in value.items() if k not in measured}

    return [timeless(row) for row in read_metrics(run / "metrics.jsonl")]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Metrics, adapter and last checkpoint are equal to the bit."""
    assert records(ours) == records(theirs)
    adapter = "adapter/adapters.safetensors"
    assert (ours / adapter).read_bytes() == (theirs / adapter).read_bytes()
    last = state.latest(theirs / "checkpoints")
    assert last is not None
    for file in last.glob("*.safetensors"):
        found = load_file(ours / file.relative_to(theirs))
        for name, value in load_file(file).items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_run_leaves_an_adapter_and_its_records(finished: Path, bf16_folder: Path, capsys):
    assert (finished / "adapter" / "adapter_config.json").is_file()
    rows = records(finished)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    heldout = [(row["step"], row["heldout_loss"]) for row in rows if "heldout_loss" in row]
    assert [step for step, _ in heldout] == [0, 4, 8]
    assert heldout[-1][1] < heldout[0][1]
    summary = rows[-1]["summary"]
    best = min(heldout, key=lambda each: each[1])
    assert (summary["best_step"], summary["heldout_after"]) == best
    assert summary["heldout_before"] == heldout[0][1]

    info = describe_run(finished)
    (stage,) = info.stages
    assert (stage.finished, stage.steps, stage.planned_steps) == (True, 8, 8)
    assert stage.model == str(finished / "adapter")
    assert main(["info", str(finished)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "fine-tuning: finished, 8 of 8 steps",
        f"base {bf16_folder}",
        "method lora",
        "rank 8 on attention, shared_expert, experts of every layer",
        f"held-out loss {heldout[0][1]:.4f} -> {best[1]:.4f}, of step {best[0]}, which is kept",
        f"Next: mobilemoe chat {bf16_folder} --adapter {finished}/adapter",
        f"mobilemoe fuse {bf16_folder} {finished}/adapter {finished}/fused",
    ):
        assert part in said
    assert main(["info", str(finished / "adapter")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        f"folder {finished}/adapter",
        "method lora",
        f"held-out loss {heldout[0][1]:.4f} before, {best[1]:.4f} after",
        f"mobilemoe fuse {bf16_folder} {finished}/adapter {finished}/fused",
    ):
        assert part in said


def test_plot_draws_a_run(finished: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert main(["plot", str(finished), "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"losses.png", "expert-load.png"}


@pytest.mark.parametrize("method", ["full", "experts", "qat"])
def test_whole_weights_are_a_model(bf16_folder, conversations, tmp_path, method: str):
    folder = short_run(bf16_folder, conversations, tmp_path / "run", method=method)
    assert folder == tmp_path / "run" / "model"
    trained, base = load_model(folder), load_model(bf16_folder)
    assert trained.args.quantized == (method == "qat")
    tokens = mx.array([[3, 4, 5, 6]])
    difference = mx.abs(trained(tokens) - base(tokens)).max().item()
    assert difference > 0 and np.isfinite(difference)
    quantize = "" if method == "qat" else " --quantize"
    assert describe_finetuning(folder.parent).next == [
        f"mobilemoe chat {folder}",
        f"mobilemoe export coreml {folder} {tmp_path}/run/model.mlpackage{quantize}",
        f"mobilemoe convert {folder} {tmp_path}/run/mlx --to mlx",
    ]


def test_resuming_a_finished_run_does_nothing(finished, bf16_folder, conversations):
    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}

    before = files()
    folder = short_run(bf16_folder, conversations, finished, "adapter.dropout=0.1", resume=True)
    assert folder == finished / "adapter" and files() == before


# --- the best step, and early stopping ----------------------------------------------------------


def test_training_stops_where_the_heldout_loss_rises(bf16_folder, conversations, tmp_path):
    """At a rate that ruins the model, the best weights are those of an early step."""
    run = tmp_path / "run"
    ruin = ("optimizer.peak_lr=0.5", "evaluate_every=1", "steps=40", "patience=2")
    short_run(bf16_folder, conversations, run, *ruin, "keep_checkpoints=1")
    rows = records(run)
    heldout = [(row["step"], row["heldout_loss"]) for row in rows if "heldout_loss" in row]
    best = min(heldout, key=lambda each: each[1])
    assert rows[-1]["step"] == heldout[-1][0] == best[0] + 2 < 40
    assert (rows[-1]["summary"]["best_step"], rows[-1]["summary"]["heldout_after"]) == best
    steps = heldout[-1][0]
    assert f"finished, {steps} of 40 steps, when the held-out" in describe_run(run).text()
    kept = load_file(run / "checkpoints" / f"step-{best[0]:08d}" / "weights.safetensors")
    adapter = load_file(run / "adapter" / "adapters.safetensors")
    for name, value in adapter.items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)


def test_a_test_file_is_evaluated_at_the_end(bf16_folder, conversations, tmp_path, capsys):
    for name, count in (("train", 40), ("valid", 10), ("test", 10)):
        write_conversations(tmp_path / "data" / f"{name}.jsonl", count)
    given = FinetuneOptions(overrides=SHORT)
    finetune(str(bf16_folder), str(tmp_path / "data"), tmp_path / "run", given)
    rows = records(tmp_path / "run")
    (test,) = [row["test_loss"] for row in rows if "test_loss" in row]
    # The same ten conversations as those held out.
    assert test == pytest.approx(rows[-1]["summary"]["heldout_after"], rel=1e-6)
    assert f"test loss: {test:.4f}" in capsys.readouterr().out


def test_patience_0_trains_to_the_end(bf16_folder, conversations, tmp_path):
    run = tmp_path / "run"
    ruin = ("optimizer.peak_lr=0.5", "evaluate_every=1", "steps=6", "patience=0")
    short_run(bf16_folder, conversations, run, *ruin)
    assert [row["step"] for row in records(run) if "loss" in row] == list(range(1, 7))


# --- stopping and going on ----------------------------------------------------------------------


def test_kill_9_then_resume_gives_the_same_losses(
    finished, bf16_folder, conversations, cache, tmp_path
):
    run = tmp_path / "run"
    settings = [f"--set={value}" for value in (*SHORT, "adapter.dropout=0.1")]
    arguments = ("finetune", bf16_folder, "--data", conversations, "--run", run, *settings)
    process = subprocess.Popen(
        mobilemoe(*arguments),
        env=environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (run / "checkpoints" / "step-00000004").exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = run_command([*mobilemoe(*arguments), "--resume"], cache)
    assert done.returncode == 0, done.stderr
    assert f"--adapter {run}/adapter" in done.stdout
    if sys.platform == "linux":  # the memory of the whole process, told before the model is loaded
        told = re.search(r"with Python, libraries and data ([\d.]+) (MB|GB)", done.stdout)
        planned = float(told[1]) * {"MB": 1e6, "GB": 1e9}[told[2]]
        measured = max(row.get("peak_memory", 0) for row in read_metrics(run / "metrics.jsonl"))
        assert planned == pytest.approx(measured, rel=0.15)
    assert_same_run(run, finished)


def test_a_signal_saves_and_the_rest_is_the_same(
    finished, bf16_folder, conversations, tmp_path, monkeypatch, capsys
):
    run, original = tmp_path / "run", Trainer.run
    arguments = ["finetune", str(bf16_folder), "--data", str(conversations), "--run", str(run)]
    arguments += [f"--set={value}" for value in (*SHORT, "adapter.dropout=0.1")]

    def step(trainer: Trainer, batch: Any) -> Any:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", step)
        assert main(arguments) == 130
    said = capsys.readouterr().out
    assert "Stopped; what was trained is saved. Go on with:" in said and "--resume" in said
    assert state.latest(run / "checkpoints").name == "step-00000003"
    assert main([*arguments, "--resume"]) == 0
    assert_same_run(run, finished)


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """The finished run as it stood when step 8 was saved and no adapter was written."""
    run = tmp_path / "stopped"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "adapter")
    return run


def test_a_run_is_not_begun_twice(stopped, bf16_folder, conversations):
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        short_run(bf16_folder, conversations, stopped)


def test_another_base_is_refused_on_resume(stopped, bf16_folder, conversations, tmp_path):
    other = tmp_path / "base"
    shutil.copytree(bf16_folder, other)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of the last weight
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"\(the base model differs\)"):
        short_run(other, conversations, stopped, "adapter.dropout=0.1", resume=True)


def test_other_values_and_other_data_are_refused_on_resume(
    stopped, bf16_folder, conversations, tmp_path
):
    with pytest.raises(UserError, match=r"adapter.rank was 8 and is 4, adapter.dropout was 0.1"):
        short_run(bf16_folder, conversations, stopped, "adapter.rank=4", resume=True)
    other = write_conversations(tmp_path / "mine.jsonl", 50)
    with pytest.raises(UserError, match=r"\(the data file mine\.jsonl differs, the held-out"):
        short_run(bf16_folder, other, stopped, "adapter.dropout=0.1", resume=True)
    other = tmp_path / "moved" / "mine.jsonl"  # the same records
    other.parent.mkdir()
    shutil.copy(conversations, other)
    short_run(bf16_folder, other, stopped, "adapter.dropout=0.1", resume=True)


def test_a_run_that_is_not_there_is_not_resumed(bf16_folder, conversations, tmp_path):
    with pytest.raises(UserError, match="holds no run to go on with: check --run"):
        short_run(bf16_folder, conversations, tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_run_is_made_longer(finished, bf16_folder, conversations, tmp_path, monkeypatch):
    """A finished run goes on to more steps; stopped in between, it gives the same."""
    longer, broken = tmp_path / "longer", tmp_path / "broken"
    for run in (longer, broken):
        shutil.copytree(finished, run)
    more = ("adapter.dropout=0.1", "steps=14", "patience=1")
    with pytest.raises(UserError, match=r"patience was 3 and is 1"):
        short_run(bf16_folder, conversations, longer, *more, resume=True)
    more = more[:2]
    short_run(bf16_folder, conversations, longer, *more, resume=True)
    rows = records(longer)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 15))
    assert [r for r in rows if r["step"] < 9] == [
        r for r in records(finished) if "summary" not in r
    ]
    # The rate of the longer run's schedule, in place of the shorter one's last.
    rates = {row["step"]: row["learning_rate"] for row in rows if "loss" in row}
    assert rates[9] > rates[8] and rates[14] == pytest.approx(0.1 * max(rates.values()))
    old = (finished / "adapter" / "adapters.safetensors").read_bytes()
    assert (longer / "adapter-of-step-8" / "adapters.safetensors").read_bytes() == old
    assert (longer / "adapter" / "adapters.safetensors").read_bytes() != old

    original = Trainer.run

    def step(trainer: Trainer, batch: Any) -> Any:
        if trainer.step == 10:
            raise KeyboardInterrupt
        return original(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", step)
        with pytest.raises(KeyboardInterrupt):
            short_run(bf16_folder, conversations, broken, *more, resume=True)
    assert "not finished" in describe_run(broken).text()
    short_run(bf16_folder, conversations, broken, *more, resume=True)
    assert_same_run(broken, longer)
    with pytest.raises(UserError, match="run of 14 steps, and 8 are asked for"):
        short_run(bf16_folder, conversations, broken, "adapter.dropout=0.1", resume=True)
    shutil.rmtree(broken / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint left"):
        short_run(bf16_folder, conversations, broken, more[0], "steps=20", resume=True)


def test_two_processes_do_not_train_in_one_folder(stopped, bf16_folder, conversations, recipe_path):
    with RunLock(stopped) as lock:
        lock.take()
        with pytest.raises(UserError, match="Another process trains in"):
            short_run(bf16_folder, conversations, stopped, "adapter.dropout=0.1", resume=True)
    folder = stopped.parent / "of-train"
    folder.mkdir()
    with RunLock(folder) as lock:
        lock.take()
        with pytest.raises(UserError, match="Another process trains in"):
            train(load_recipe(recipe_path), folder)
    assert not list(folder.iterdir())
    short_run(bf16_folder, conversations, stopped, "adapter.dropout=0.1", resume=True)


def test_train_and_finetune_keep_out_of_each_others_folders(
    finished, bf16_folder, conversations, recipe_path, tmp_path
):
    with pytest.raises(UserError, match="holds a run of `mobilemoe finetune`"):
        train(load_recipe(recipe_path), finished, resume=True)
    (tmp_path / "recipe.json").write_text((finished / "recipe.json").read_text())
    content = json.loads((tmp_path / "recipe.json").read_text())
    content["stages"] = {"sft": content["stages"]["finetune"]}
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds a run of `mobilemoe train`"):
        short_run(bf16_folder, conversations, tmp_path)


# --- what cannot be used ------------------------------------------------------------------------


def test_what_cannot_be_trained_leaves_nothing(bf16_folder, conversations, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    cases = [
        (bf16_folder, empty, (), "no"),
        (bf16_folder, tmp_path / "absent.jsonl", (), "absent.jsonl"),
        (bf16_folder, conversations, ("data.context=4",), "context"),
        (bf16_folder, conversations, ("micro_batch_size=3", "batch_size=4"), "does not divide"),
        (tmp_path / "absent", conversations, (), "no folder"),
        (bf16_folder, conversations, ("data.heldout_fraction=1",), "below 1"),
        (bf16_folder, conversations, ("batch_size=100000000",), "positions: at most"),
        (bf16_folder, conversations, ("adapter.rank=100000000",), "hidden size"),
        (bf16_folder, conversations, ("steps=9000000000000000000",), "smaller number"),
    ]
    for base, data, overrides, message in cases:
        with pytest.raises(UserError, match=message) as error:
            short_run(base, data, tmp_path / "run", *overrides)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists(), message


def test_a_run_is_not_kept_inside_its_base(bf16_folder, conversations):
    before = sorted(bf16_folder.rglob("*"))
    with pytest.raises(UserError, match=r"is inside .*, which is read"):
        short_run(bf16_folder, conversations, bf16_folder / "run")
    assert sorted(bf16_folder.rglob("*")) == before


def test_the_commands_after_a_run_work_for_that_run(int4_folder, tmp_path, capsys):
    """Texts are continued, not talked to; and INT4 would lose what so few steps have learnt."""
    data, run = tmp_path / "texts.jsonl", tmp_path / "run"
    lines = [json.dumps({"text": f"def indent(text, n={n}): return n * text"}) for n in range(40)]
    data.write_text("\n".join(lines) + "\n")
    command = ["finetune", str(int4_folder), "--data", str(data), "--run", str(run)]
    settings = [f"--set={value}" for value in (*SHORT, "optimizer.peak_lr=1e-4")]
    assert main([*command, *settings]) == 0
    said = capsys.readouterr().out
    assert "of this adapter, so a fuse into INT4 is refused" in said and "qat-lora" in said
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith("  mobilemoe")]
    assert [words[1] for words in commands] == ["generate", "fuse"]
    assert commands[1][-2:] == ["--to", "bf16"]
    assert main([*commands[0][1:], "--max-tokens", "2"]) == 0
    assert main(commands[1][1:]) == 0


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(
    bf16_folder, conversations, tmp_path, monkeypatch
):
    original = Trainer.run

    def step(trainer: Trainer, batch: Any) -> Any:
        if trainer.step == 5:
            module = trainer.parameters["model"]["layers"][0]["self_attn"]["q_proj"]
            module["lora_a"] = mx.full(module["lora_a"].shape, float("nan"))
        return original(trainer, batch)

    monkeypatch.setattr(Trainer, "run", step)
    with pytest.raises(UserError, match=r"step 6: the loss is nan .*step-00000004") as error:
        short_run(bf16_folder, conversations, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("at", ["checkpoint", "adapter"])
def test_a_full_disk_leaves_what_was_saved(
    finished, bf16_folder, conversations, tmp_path, monkeypatch, at: str
):
    full, calls = OSError(errno.ENOSPC, "No space left on device"), [0]
    module, name = (
        (state, "save_file") if at == "checkpoint" else ("mobilemoe_mlx.adapters.adapter_file", "")
    )
    run = tmp_path / "run"

    def failing(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] > 4 or at == "adapter":  # the checkpoints of steps 0 and 2 fit
            raise full
        return original(*args, **options)

    with monkeypatch.context() as patch:
        if at == "checkpoint":
            original = state.save_file
            patch.setattr(module, name, failing)
        else:
            patch.setattr(f"{module}.write_file", failing)
        with pytest.raises(UserError, match="No space left on device"):
            short_run(bf16_folder, conversations, run, "adapter.dropout=0.1")
    assert not (run / "adapter").exists() and not list(run.glob(".*"))
    short_run(bf16_folder, conversations, run, "adapter.dropout=0.1", resume=True)
    assert_same_run(run, finished)


def test_the_command_says_one_sentence(bf16_folder, tmp_path, capsys):
    arguments = ["finetune", str(bf16_folder), "--run", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mobilemoe: ") and error.count("\n") == 1 and "--data" in error


def test_a_plan_tells_the_memory_and_writes_nothing(
    int4_folder, conversations, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", str(int4_folder), "--data", str(conversations), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "Memory of qlora" in said and "frozen weights" in said and "adapters" in said
    assert not list(tmp_path.iterdir())


def test_a_run_that_does_not_fit_stops_before_the_model_is_loaded(
    bf16_folder, conversations, tmp_path, capsys, monkeypatch
):
    little = MachineMemory(1_000_000, "free memory", "")
    monkeypatch.setattr("mobilemoe_mlx.finetune.run.machine_memory", lambda: little)
    monkeypatch.setattr("mobilemoe_mlx.finetune.run.load_base", lambda *_: pytest.fail("loaded"))
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"micro_batch_size=1: .* \(learns the same\)"):
        short_run(bf16_folder, conversations, run)
    assert not run.exists()
