"""A run's folder: begun only when all is well, found again by later stages, changed by nobody."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from safetensors.numpy import load_file, save_file
from training_fixtures import RECIPE, write_family

from mobilemoe_mlx import text_table
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.config import read_config
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train import disk_space, state
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.plot import curves
from mobilemoe_mlx.train.recipe import load_recipe
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.train.run_folder import StageFolder
from mobilemoe_mlx.train.run_info import describe_run, is_run

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture
def family(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A recipe with data of its own, which a test may edit."""
    return write_family(tmp_path / "family", tokenizer_folder)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, recipe_path: Path) -> Path:
    """A run whose pre-training is finished; do not write into it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(load_recipe(recipe_path, stages=["pretrain"]), run)
    return run


@pytest.fixture
def run(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of `pretrained`."""
    return Path(shutil.copytree(pretrained, tmp_path / "run"))


class Stop(Exception):
    """What the tests raise inside a run."""


@pytest.fixture
def interrupted(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pre-training of `family` that stopped after its checkpoint of step 4."""
    original = state.save

    def save(*args: Any) -> Path:
        if args[1].step == 6:
            raise Stop
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save", save)
        with pytest.raises(Stop):
            train(load_recipe(family, stages=["pretrain"]), tmp_path / "run")
    return tmp_path / "run"


# --- before a run exists ----------------------------------------------------------------------


def break_line(family: Path) -> None:
    file = family.parent / "text.jsonl"
    file.write_text(file.read_text() + '{"text": "cut o\n')


def break_heldout(family: Path) -> None:
    (family.parent / "heldout-text.jsonl").unlink()


def break_mixture(family: Path) -> None:
    mixture = family.parent / "text.toml"
    mixture.write_text(mixture.read_text().replace("weight", "wieght"))


def empty_source(family: Path) -> None:
    (family.parent / "more-text.jsonl").write_text('{"text": " "}\n')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_line, r"pretrain\.data\.mixture: .*line 7 of .*text\.jsonl"),
        (break_heldout, r"pretrain\.data\.heldout: .*heldout-text\.jsonl"),
        (break_mixture, r"text\.toml.*wieght"),
        (empty_source, r"source 'two' has no usable record"),
    ],
)
def test_a_mistake_in_the_data_leaves_no_folder(
    family: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
):
    damage(family)
    with pytest.raises(UserError, match=message):
        train(load_recipe(family), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_a_later_stages_data_is_found_first(family: Path, tmp_path: Path):
    (family.parent / "more-chat.jsonl").write_text("not JSON\n")
    with pytest.raises(UserError, match=r"sft\.data\.mixture: .*line 1 of .*more-chat\.jsonl"):
        train(load_recipe(family), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.heldout=none.jsonl", None),
        (None, r"That is the recipe's choice: .*`--set 'data\.heldout=\[\]'`"),
    ],
)
def test_errors_about_the_recipes_own_choices_name_the_override(
    family: Path, tmp_path: Path, override: str | None, message: str | None
):
    break_heldout(family)
    overrides = [override] if override else []
    with pytest.raises(UserError) as error:
        train(load_recipe(family, overrides, ["pretrain"]), tmp_path / "run")
    if message is None:
        assert "recipe's choice" not in str(error.value)
    else:
        with pytest.raises(UserError, match=message):
            raise error.value


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seed=-1", "The seed is -1; it must be a whole number from 0"),
        (f"--seed={2**64}", f"The seed is {2**64}; it must be a whole number from 0"),
        (
            "--set=batch_size=1e15",
            "a step would have 1,000,000,000,000,000 x 32 positions: at most",
        ),
        (
            "--set=data.heldout_tokens=1e23",
            "heldout_tokens is 99999999999999991611392; it must",
        ),
    ],
)
def test_numbers_that_nothing_can_be_made_of(
    family: Path, tmp_path: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    extra = ["--set", "optimizer.warmup_steps=0", option]
    assert main(["train", str(family), "--run", str(run), "--stage", "pretrain", *extra]) == 2
    assert message in capsys.readouterr().err
    assert not run.exists()


def test_a_full_disk_is_foreseen(family: Path, tmp_path: Path, monkeypatch):
    recipe = load_recipe(family, stages=["pretrain"])
    said: list[str] = []
    train(recipe, tmp_path / "there", say=said.append)
    last = state.latest(tmp_path / "there" / "pretrain" / "checkpoints")
    assert last is not None
    size = disk_space.bytes_in(last)
    assert f"checkpoints of {text_table.size(size)[:3]}" in said[0]
    # Two are kept, and one is written before another goes.
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(2.9 * size)))
    with pytest.raises(UserError, match=r"needs up to .*free: .*`--set keep_checkpoints=1`"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(3.5 * size)))
    train(recipe, tmp_path / "run")


# --- later stages, and starting again ---------------------------------------------------------


def without_tokenizer(recipe_path: Path) -> Path:
    path = recipe_path.with_name("without.toml")
    path.write_text(RECIPE)
    return path


def test_a_later_stage_finds_the_runs_tokenizer(recipe_path: Path, run: Path):
    model = train(load_recipe(without_tokenizer(recipe_path), stages=["midtrain"]), run)
    theirs = (run / "tokenizer" / "tokenizer.json").read_bytes()
    assert (model / "tokenizer.json").read_bytes() == theirs


def test_or_that_of_the_stage_before(recipe_path: Path, run: Path):
    shutil.rmtree(run / "tokenizer")
    train(load_recipe(without_tokenizer(recipe_path), stages=["midtrain"]), run)


def test_a_checkpoints_tokenizer_wins_over_a_hub_default(
    recipe_path: Path, pretrained: Path, tmp_path: Path
):
    path = recipe_path.with_name("hub.toml")
    path.write_text(RECIPE + '[tokenizer]\npath = "nobody/has-this"\n')
    recipe = load_recipe(path, stages=["midtrain"])
    train(recipe, tmp_path / "run", init=str(pretrained / "pretrain" / "model"))


def test_a_run_that_trained_nothing_may_begin_anew(family: Path, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("mobilemoe_mlx.train.step.Trainer.run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(load_recipe(family, stages=["pretrain"]), run)
    assert state.latest(run / "pretrain" / "checkpoints") is not None
    other = load_recipe(family, ["optimizer.peak_lr=2e-3", "data.context=16"], ["pretrain"])
    train(other, run)
    record = json.loads((run / "recipe.json").read_text())
    assert record["stages"]["pretrain"]["data"]["context"] == 16


def test_a_finished_stage_needs_no_checkpoints(recipe_path: Path, run: Path):
    shutil.rmtree(run / "pretrain" / "checkpoints")
    before = (run / "pretrain" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds a run already"):
        train(load_recipe(recipe_path, stages=["pretrain"]), run)
    train(load_recipe(recipe_path, stages=["pretrain"]), run, resume=True)
    assert (run / "pretrain" / "metrics.jsonl").read_bytes() == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what may not change ----------------------------------------------------------------------


def test_changed_data_is_refused_by_name(family: Path, interrupted: Path):
    file = family.parent / "more-text.jsonl"
    text = file.read_text()
    assert "cat" in text
    file.write_text(text.replace("cat", "cow", 1))
    recipe = load_recipe(family, ["keep_checkpoints=1"], ["pretrain"])
    before, said = contents(interrupted), list[str]()
    with pytest.raises(UserError, match=r"more-text\.jsonl .*has changed"):
        train(recipe, interrupted, resume=True, say=said.append)
    assert contents(interrupted) == before and not said
    file.write_text(text)
    train(recipe, interrupted, resume=True)


def test_changed_heldout_data_is_refused_by_name(family: Path, interrupted: Path):
    file = family.parent / "heldout-text.jsonl"
    text = file.read_text()
    file.write_text(text.replace("cat", "cow", 1))
    recipe = load_recipe(family, stages=["pretrain"])
    with pytest.raises(UserError, match=r"the held-out file heldout-text\.jsonl differs"):
        train(recipe, interrupted, resume=True)
    file.write_text(text)
    train(recipe, interrupted, resume=True)


def test_heldout_files_of_one_name_are_told_apart(family: Path, tmp_path: Path):
    names = [f"{folder}/held.jsonl" for folder in ("first", "second")]
    for name in names:
        (family.parent / name).parent.mkdir()
        shutil.copyfile(family.parent / "heldout-text.jsonl", family.parent / name)
    overrides = [f"data.heldout={json.dumps(names)}"]
    run = tmp_path / "run"
    train(load_recipe(family, overrides, ["pretrain"]), run)
    shutil.rmtree(run / "pretrain" / "model")
    for name, told in zip(names, ("held.jsonl", r"held.jsonl \(2\)"), strict=True):
        file = family.parent / name
        text = file.read_text()
        file.write_text(text.replace("cat", "cow", 1))
        with pytest.raises(UserError, match=rf"the held-out file {told} differs"):
            train(load_recipe(family, overrides, ["pretrain"]), run, resume=True)
        file.write_text(text)


def test_weights_that_are_not_finite_are_not_trained(
    recipe_path: Path, pretrained: Path, interrupted: Path, tmp_path: Path
):
    init = Path(shutil.copytree(pretrained / "pretrain" / "model", tmp_path / "init"))
    last = state.latest(interrupted / "pretrain" / "checkpoints")
    assert last is not None
    for file in (init / "model.safetensors", last / "weights.safetensors"):
        tensors = mx.load(str(file))
        bias = next(name for name in tensors if name.endswith("layers.1.feed_forward.expert_bias"))
        tensors[bias][0] = math.nan
        mx.eval(tensors)
        mx.save_safetensors(str(file), tensors, {"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.\S*expert_bias has values that"):
        train(load_recipe(recipe_path, stages=["midtrain"]), tmp_path / "new", init=str(init))
    with pytest.raises(UserError, match=r"step-00000004 is damaged \(.*expert_bias has values"):
        train(load_recipe(recipe_path, stages=["pretrain"]), interrupted, resume=True)


def rename_one(tensors: dict[str, Any]) -> None:
    name = next(iter(tensors))
    tensors[f"{name}.other"] = tensors.pop(name)


def drop_one(tensors: dict[str, Any]) -> None:
    del tensors[next(iter(tensors))]


def shorten_one(tensors: dict[str, Any]) -> None:
    name = next(name for name, value in tensors.items() if value.ndim)
    tensors[name] = tensors[name][:1]


@pytest.mark.parametrize("change", [rename_one, drop_one, shorten_one])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_of_another_model_is_refused(
    family: Path, interrupted: Path, file: str, change: Callable[[dict[str, Any]], None]
):
    last = state.latest(interrupted / "pretrain" / "checkpoints")
    assert last is not None
    tensors = load_file(last / file)
    change(tensors)
    save_file(tensors, last / file)
    with pytest.raises(UserError, match=r"step-00000004 is damaged \((it has no|.*model)"):
        train(load_recipe(family, stages=["pretrain"]), interrupted, resume=True)


def test_the_summary_counts_steps_that_the_metrics_lost(family: Path, interrupted: Path):
    metrics = interrupted / "pretrain" / "metrics.jsonl"
    metrics.unlink()
    said: list[str] = []
    train(load_recipe(family, stages=["pretrain"]), interrupted, resume=True, say=said.append)
    assert any("metrics.jsonl has no record of 4 of the 4 steps" in line for line in said)
    assert "finished, 8 steps, of which 4 are recorded" in describe_run(interrupted).text()
    *rows, last = read_metrics(metrics)
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 4 and last["step"] == 8
    seconds = sum(row["tokens"] / row["tokens_per_second"] for row in steps)
    rate = sum(row["tokens"] for row in steps) / seconds
    assert last["summary"]["seconds"] is None
    assert last["summary"]["tokens_per_second"] == pytest.approx(rate, rel=1e-2)
    assert any(" 8 steps, 1,024 tokens (" in line for line in said)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"12", "line 2 is no record"),
        (b"null", "line 2 is no record"),
        (b"{}", "line 2 is no record"),
        (b'{"step": 1, "loss": "2"}', "line 2 is no record"),
        (b'{"step": 1, "loss": 2, "dead_experts": 5}', "line 2 is no record"),
        (b'{"step": 1, "loss": 2, "dropped": 0.5}', "line 2 is no record"),
        (b'{"step": "1"}', "line 2 is no record"),
        (b"{", "line 2 is no record"),
        (b"\xff", "metrics.jsonl is not UTF-8"),
    ],
)
def test_damaged_metrics_are_named(family: Path, interrupted: Path, line: bytes, why: str):
    metrics = interrupted / "pretrain" / "metrics.jsonl"
    first, *rest = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([first, line + b"\n", *rest]))
    before = contents(interrupted)
    with pytest.raises(UserError, match=why):
        train(load_recipe(family, stages=["pretrain"]), interrupted, resume=True)
    with pytest.raises(UserError, match=why):
        describe_run(interrupted)
    with pytest.raises(UserError, match=why):
        curves(interrupted)
    assert contents(interrupted) == before


@pytest.mark.parametrize("cut", ["{", "12", '{"step": 1', ""])
def test_a_last_line_that_was_cut_off_is_left_out(interrupted: Path, cut: str):
    metrics = interrupted / "pretrain" / "metrics.jsonl"
    whole = read_metrics(metrics)
    metrics.write_text(metrics.read_text() + cut)
    assert read_metrics(metrics) == whole


def test_records_that_lack_a_part_are_told_without_it(family: Path, interrupted: Path):
    metrics = interrupted / "pretrain" / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0}\n')
    (stage,) = describe_run(interrupted).stages
    assert (stage.steps, stage.loss, stage.dead_experts, stage.dropped) == (1, 2.0, None, None)
    train(load_recipe(family, stages=["pretrain"]), interrupted, resume=True)


def test_the_share_of_dropped_choices_is_told(interrupted: Path):
    metrics = interrupted / "pretrain" / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0, "dropped": [0.1, 0.3]}\n')
    assert "choices dropped    20.0% at the last step" in describe_run(interrupted).text()


@pytest.mark.parametrize(
    "damage",
    [
        {"model": []},
        {"model": None},
        {"tokenizer": "x"},
        {"stages": {"pretrain": 5}},
        {"stages": {"pretrain": {"tokens": 8, "batch_size": 1}}},
        {"stages": {"pretrain": {"tokens": 8, "batch_size": "1", "data": {"context": 8}}}},
    ],
    ids=str,
)
def test_a_damaged_record_is_named(family: Path, interrupted: Path, damage: dict[str, Any]):
    record = interrupted / "recipe.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | damage))
    with pytest.raises(UserError, match=r"recipe.json is damaged"):
        train(load_recipe(family, stages=["pretrain"]), interrupted, resume=True)
    with pytest.raises(UserError, match=r"recipe.json is damaged"):
        describe_run(interrupted)


def test_an_end_token_of_the_record_may_be_a_number(family: Path, interrupted: Path):
    record = interrupted / "recipe.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"model": content["model"] | {"eos_token_id": 2}}))
    train(load_recipe(family, stages=["pretrain"]), interrupted, resume=True)


@pytest.mark.parametrize("version", [None, 0, "2"])
def test_runs_of_another_version_are_refused(family: Path, interrupted: Path, version: Any):
    record = interrupted / "recipe.json"
    content = json.loads(record.read_text())
    content.pop("version")
    record.write_text(json.dumps(content if version is None else content | {"version": version}))
    before = contents(interrupted)
    advice = r"another version of this program.*another folder with --run, where --init takes"
    for stage, resume in (("pretrain", True), ("midtrain", False)):
        with pytest.raises(UserError, match=advice):
            train(load_recipe(family, stages=[stage]), interrupted, resume=resume)
    with pytest.raises(UserError, match=advice):
        describe_run(interrupted)
    assert contents(interrupted) == before


@pytest.mark.parametrize("name", ["data", "losses", "step", "random_state"])
def test_a_checkpoint_without_a_part_is_damaged(family: Path, interrupted: Path, name: str):
    last = state.latest(interrupted / "pretrain" / "checkpoints")
    assert last is not None
    content = json.loads((last / "state.json").read_text())
    del content[name]
    (last / "state.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"step-00000004 is damaged \(no '{name}'\): delete it"):
        train(load_recipe(family, stages=["pretrain"]), interrupted, resume=True)


def test_a_changed_starting_point_is_refused(
    recipe_path: Path, pretrained: Path, tmp_path: Path, monkeypatch
):
    recipe = load_recipe(recipe_path, stages=["midtrain"])
    model = Path(shutil.copytree(pretrained / "pretrain" / "model", tmp_path / "model"))
    original, saves = state.save, []

    def save(*args: Any) -> Path:
        if len(saves) == 3:
            raise Stop
        saves.append(args)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save", save)
        with pytest.raises(Stop):
            train(recipe, tmp_path / "run", init=str(model))
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"the checkpoint of --init differs"):
        train(recipe, tmp_path / "run", init=str(model), resume=True)
    train(recipe, tmp_path / "run", resume=True)  # its weights are not needed any more


def test_what_ends_a_generation_survives(recipe_path: Path, pretrained: Path, tmp_path: Path):
    model = Path(shutil.copytree(pretrained / "pretrain" / "model", tmp_path / "model"))
    for name, ends in (("config.json", [2, 5, 77]), ("generation_config.json", [2, 78])):
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | {"eos_token_id": ends}))
    recipe = load_recipe(recipe_path, stages=["sft"])
    trained = train(recipe, tmp_path / "run", init=str(model))
    expected = {2, 5, 77, 78}
    assert expected <= set(read_config(trained)["eos_token_id"])
    # The stage after it is not told of the first checkpoint.
    trained = train(load_recipe(recipe_path, stages=["qat"]), tmp_path / "run")
    assert expected <= set(read_config(trained)["eos_token_id"])
    generation = json.loads((trained / "generation_config.json").read_text())
    assert expected <= set(generation["eos_token_id"])


# --- lengths and summaries --------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "epochs"), [("pretrain", 2), ("pretrain", 0.5), ("sft", 3)])
def test_epochs_are_passes_over_the_data(family, pretrained, tmp_path, stage: str, epochs: float):
    overrides = [f"{stage}.epochs={epochs}", "optimizer.warmup_steps=0", "batch_size=1"]
    start = str(pretrained / "pretrain" / "model")
    train(load_recipe(family, overrides, [stage]), tmp_path / "run", init=start)
    rows = read_metrics(tmp_path / "run" / stage / "metrics.jsonl")
    records = sum(source["records"] for source in rows[-1]["sources"].values())
    kind = {"pretrain": "text", "sft": "chat"}[stage]
    files = [family.parent / f"{name}{kind}.jsonl" for name in ("", "more-")]
    there = sum(len(file.read_text().splitlines()) for file in files)
    # Reading goes on to the end of a row; sources are read by weight, not by size.
    assert records == pytest.approx(epochs * there, abs=3)


def test_epochs_of_a_stream_are_refused(family: Path, tmp_path: Path):
    (family.parent / "text.toml").write_text(
        'format = "text"\n[[sources]]\nname = "web"\nweight = 1.0\npath = "some/where"\n'
    )
    recipe = load_recipe(family, ["epochs=1"], ["pretrain"])
    with pytest.raises(UserError, match=r"epochs needs local files.*\(web\).*pretrain\.tokens=N"):
        train(recipe, tmp_path / "run")


def test_a_summary_tells_what_was_read_and_reached(family: Path, pretrained: Path, tmp_path: Path):
    file = family.parent / "chat.jsonl"
    long = {"role": "user", "content": "the cat sees a small red house and a tree " * 20}
    answer = {"role": "assistant", "content": "a bird"}
    tool = {"role": "tool", "content": "{}"}
    bad = [[long, answer], [long, tool, answer], [{"role": "user", "content": "a"}]]
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in bad)
    file.write_text(file.read_text() + lines)
    said: list[str] = []
    start = str(pretrained / "pretrain" / "model")
    recipe = load_recipe(family, stages=["sft"])
    train(recipe, tmp_path / "run", init=start, say=said.append)
    rows = read_metrics(tmp_path / "run" / "sft" / "metrics.jsonl")
    skipped = rows[-1]["sources"]["one"]["skipped"]
    assert set(skipped) == {
        "every answer lies beyond the context",
        "tool calls or results",
        "no answer",
    }
    summary = rows[-1]["summary"]
    assert summary["tokens"] + summary["padding"] == 8 * 4 * 32
    assert summary["tokens"] == sum(row["tokens"] for row in rows if "loss" in row)
    heldout = [row["heldout_loss"] for row in rows if "heldout_loss" in row]
    assert (summary["heldout_before"], summary["heldout_after"]) == (heldout[0], heldout[-1])
    text = "\n".join(said)
    for part in (
        f"SFT is finished: 8 steps, {summary['tokens']:,} tokens",
        f"{skipped['tool calls or results']} records (tool calls or results)",
        f"padding: {summary['padding']:,} positions",
        f"held-out loss: {heldout[0]:.4f} before, {heldout[-1]:.4f} after",
        f"model: {tmp_path / 'run' / 'sft' / 'model'}",
    ):
        assert part in text, part


# --- looking at a run -------------------------------------------------------------------------


def test_a_run_describes_itself(interrupted: Path, pretrained: Path):
    assert is_run(pretrained) and not is_run(pretrained / "pretrain" / "model")
    (stage,) = describe_run(pretrained).stages
    assert (stage.finished, stage.steps, stage.planned_steps) == (True, 8, 8)
    assert stage.checkpoints == [6, 8]
    assert [step for step, _ in stage.heldout] == [0, 8]
    assert stage.dead_experts is not None and stage.sources["one"]["documents"] > 0
    assert stage.bytes > sum(f.stat().st_size for f in (pretrained / "pretrain/model").iterdir())
    (other,) = describe_run(interrupted).stages
    assert (other.finished, other.steps, other.checkpoints) == (False, 6, [2, 4])
    text = describe_run(interrupted).text()
    assert "not finished, 6 of 8 steps" in text and "checkpoints        of step 2, 4" in text
    assert json.loads(json.dumps(describe_run(pretrained).to_dict()))["name"] == "test"
    with pytest.raises(UserError, match="not the folder of a training run"):
        describe_run(pretrained / "pretrain")


def test_other_things_among_the_checkpoints_are_passed_over(tmp_path: Path):
    for name in ("step-00000002", "step-00000004.bak", "._step-00000004", ".writing-step-00000006"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000008").touch()
    assert state.latest(tmp_path) == tmp_path / "step-00000002"
    assert not StageFolder(tmp_path).has_started
