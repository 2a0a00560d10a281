"""The training step, and the four stages of a very small family from text to an INT4 checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from training_fixtures import RECIPE, bare_recipe, losses, random_batch, write_family

import mobilemoe_mlx
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.config import read_config
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import quantize_model
from mobilemoe_mlx.tokenizer import encode_text, eos_token_ids, load_tokenizer
from mobilemoe_mlx.train import state, step
from mobilemoe_mlx.train.data import open_heldout
from mobilemoe_mlx.train.evaluate import heldout_loss
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import STAGES, Recipe, load_recipe
from mobilemoe_mlx.train.recomputation import computed_again
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.train.step import Trainer

pytestmark = pytest.mark.usefixtures("datasets_cache")

REFERENCE = Path(__file__).parent / "tiny_losses.json"
PROMPTS = ("the cat sees", "a", "the small red house and the tree and a bird finds the dog")


# --- one step ---------------------------------------------------------------------------------


def new_trainer(recipe: Recipe, stage: str) -> Trainer:
    mx.random.seed(0)
    return Trainer(Model(recipe.model), recipe.stages[stage])


def some_batch(seed: int = 0) -> Batch:
    return random_batch(4, 32, 480, seed)


def flat(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(trainer.all_parameters())}


@pytest.mark.parametrize("stage", ["pretrain", "qat"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["micro_batch_size=1"],
        ["micro_batch_size=2", "compute.activation_checkpointing=true", "compute.loss_chunk=17"],
    ],
    ids=["rows", "all"],
)
@pytest.mark.parametrize("limit", [[], ["routing.capacity_factor=1.0"]], ids=["dropless", "full"])
def test_computing_in_parts_is_the_full_batch(
    tmp_path, stage: str, overrides: list[str], limit: list[str]
):
    whole = new_trainer(bare_recipe(tmp_path, limit), stage)
    parts = new_trainer(bare_recipe(tmp_path, overrides + limit), stage)
    for seed in range(3):
        ours, theirs = parts.run(some_batch(seed)), whole.run(some_batch(seed))
        assert ours.counts.tolist() == theirs.counts.tolist()
        assert mx.array_equal(ours.dropped, theirs.dropped)
        assert mx.all(ours.dropped > 0).item() == bool(limit) and mx.all(ours.dropped < 1)
        # After the first step rounding has moved weights across the edges of INT4 codes.
        tolerance = 1e-5 if seed == 0 else 2e-3
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            assert a == pytest.approx(b, rel=tolerance)
    assert mx.array_equal(parts.biases, whole.biases)
    reference = flat(whole)
    for name, value in flat(parts).items():
        # AdamW's first steps are of the size of the rate whatever the gradient's: where it is
        # nearly 0, rounding decides its sign, so the worst entry may be off by a few rates.
        assert np.abs(value - reference[name]).mean() < 1e-4, name


def test_activation_checkpointing_wraps_every_layer(tmp_path, monkeypatch):
    trainer = new_trainer(bare_recipe(tmp_path, ["compute.activation_checkpointing=true"]), "sft")
    wrapped: list[nn.Module] = []

    def counted(layer):
        wrapped.append(layer)
        return computed_again(layer)

    monkeypatch.setattr("mobilemoe_mlx.train.loss.computed_again", counted)
    trainer.run(some_batch())
    assert wrapped == list(trainer.model.layers)


def test_a_micro_batch_that_does_not_divide_is_refused(tmp_path):
    recipe = bare_recipe(tmp_path, ["micro_batch_size=3"])
    with pytest.raises(UserError, match="micro_batch_size 3 does not divide"):
        new_trainer(recipe, "pretrain")


def test_a_step_moves_each_bias_by_the_rate(tmp_path):
    trainer = new_trainer(bare_recipe(tmp_path), "pretrain")
    counts = np.array(trainer.run(some_batch()).counts)
    expected = 1e-3 * np.sign(counts.mean(axis=1, keepdims=True) - counts)
    np.testing.assert_allclose(np.array(trainer.biases), expected, atol=1e-9)
    names = [name for name in flat(trainer) if name.endswith("expert_bias")]
    stored = np.stack([flat(trainer)[name] for name in names])
    np.testing.assert_array_equal(stored, np.array(trainer.biases))


def test_the_loss_falls_on_one_repeated_batch(tmp_path):
    trainer = new_trainer(bare_recipe(tmp_path, ["tokens=4000"]), "pretrain")
    found = [trainer.run(some_batch()).loss for _ in range(30)]
    assert found[0] == pytest.approx(math.log(480), rel=0.2)
    assert found[-1] < 0.5 * found[0]


def test_weight_decay_leaves_norms_alone(tmp_path):
    overrides = ["optimizer.weight_decay=100", "optimizer.warmup_steps=0", "optimizer.peak_lr=1e-3"]
    decayed, plain = (
        new_trainer(bare_recipe(tmp_path, [*overrides, *more]), "pretrain")
        for more in ([], ["optimizer.weight_decay=0"])
    )
    decayed.run(some_batch())
    plain.run(some_batch())
    for name, value in flat(decayed).items():
        same = np.array_equal(value, flat(plain)[name])
        assert same == name.endswith(("norm.weight", "expert_bias")), name


@pytest.mark.parametrize("stage", ["pretrain", "qat"])
def test_bfloat16_computes_with_float32_masters_and_router(tmp_path, stage, monkeypatch):
    single = new_trainer(bare_recipe(tmp_path), stage)
    half = new_trainer(bare_recipe(tmp_path, ["compute.dtype=bfloat16"]), stage)
    computed: dict[str, mx.Dtype] = {}
    original = step.loss_sums

    def spy(model, *args, **options):
        computed.update({name: value.dtype for name, value in tree_flatten(model.parameters())})
        return original(model, *args, **options)

    for seed in range(4):
        expected = single.run(some_batch(seed))
        with monkeypatch.context() as patch:
            patch.setattr(step, "loss_sums", spy)
            result = half.run(some_batch(seed))
        assert result.loss == pytest.approx(expected.loss, rel=2e-2)
        assert result.grad_norm == pytest.approx(expected.grad_norm, rel=5e-2)
    for name, dtype in computed.items():
        in_single = name.endswith(("router.weight", "expert_bias"))
        assert dtype == (mx.float32 if in_single else mx.bfloat16), name
    for _, value in tree_flatten([half.parameters, half.biases, half.optimizer.state]):
        assert value.dtype in (mx.float32, mx.uint64)  # uint64: the optimiser's step
    # Masters in bfloat16 would not hold a thousandth of a weight.
    embedding = half.parameters["model"]["embed_tokens"]["weight"]
    assert not mx.array_equal(embedding, embedding.astype(mx.bfloat16).astype(mx.float32))


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path):
    trainer = new_trainer(bare_recipe(tmp_path), "pretrain")
    trainer.run(some_batch())
    norm = trainer.parameters["model"]["norm"]
    norm["weight"] = mx.where(mx.arange(32) == 3, float("nan"), norm["weight"])
    before = [np.array(x) for _, x in tree_flatten([trainer.all_parameters(), trainer.biases])]
    moments = [np.array(x) for _, x in tree_flatten(trainer.optimizer.state)]
    with pytest.raises(UserError, match=r"step 2: the loss is nan .*Lower optimizer.peak_lr"):
        trainer.run(some_batch())
    assert trainer.step == 1
    after = [np.array(x) for _, x in tree_flatten([trainer.all_parameters(), trainer.biases])]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, (_, b) in zip(moments, tree_flatten(trainer.optimizer.state), strict=True):
        np.testing.assert_array_equal(a, np.array(b))


# --- a whole run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe_path: Path) -> Path:
    """A run of all four stages; do not write into it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train(load_recipe(recipe_path), run) == run / "qat" / "model"
    return run


def trainer_at_the_end(recipe_path: Path, run: Path, stage: str) -> Trainer:
    args = mobilemoe_mlx.load(run / stage / "model")[0].args
    recipe = load_recipe(recipe_path)
    trainer = Trainer(Model(dataclasses.replace(args, quantized=False)), recipe.stages[stage])
    state.load(state.latest(run / stage / "checkpoints"), trainer)
    assert trainer.step == recipe.stages[stage].steps
    return trainer


def test_the_losses_fall(finished: Path):
    found = {stage: losses(finished, stage) for stage in STAGES}
    assert all(list(by_step) == list(range(1, 9)) for by_step in found.values())
    assert found["pretrain"][1] == pytest.approx(math.log(480), rel=0.2)
    assert found["midtrain"][8] < found["pretrain"][8] < 0.7 * found["pretrain"][1]
    assert found["sft"][8] < found["sft"][1]


def test_the_metrics_hold_what_people_watch(finished: Path):
    for stage in STAGES:
        rows = read_metrics(finished / stage / "metrics.jsonl")
        steps = [row for row in rows if "loss" in row]
        for row in steps:
            assert {"z_loss", "grad_norm", "learning_rate"} <= row.keys()
            assert row["tokens_per_second"] > 0 and row["peak_memory"] > 1e7
            for name in ("load_entropy", "dead_experts", "max_load"):
                assert len(row[name]) == 2  # one a layer
        load = np.array(steps[-1]["load"])
        assert load.shape == (2, 8) and load.sum(axis=1) == pytest.approx(1, abs=1e-3)
        assert {"tokens", "epochs"} <= steps[-1]["sources"]["one"].keys()
        heldout = [row["step"] for row in rows if "heldout_loss" in row]
        assert heldout == ([] if stage == "midtrain" else [0, 8])


def test_limits_beyond_all_there_is_change_nothing(recipe_path, finished: Path, tmp_path: Path):
    # Beyond what int32, an array and, of the last, float64 times a number of tokens hold.
    overrides = ["compute.loss_chunk=9e18", "micro_batch_size=9e18", "evaluate_every=9e18"]
    overrides += ["data.heldout_stride=9e18", "routing.capacity_factor=1e308"]
    train(load_recipe(recipe_path, overrides, ["pretrain"]), tmp_path / "run")
    ours, theirs = (
        [row.get("loss", row.get("heldout_loss")) for row in read_metrics(metrics)]
        for metrics in (run / "pretrain" / "metrics.jsonl" for run in (tmp_path / "run", finished))
    )
    assert ours == theirs and len(ours) == 8 + 2 + 1  # steps, evaluations, and the summary


def test_evaluations_between_the_ends_may_use_a_part_of_the_heldout_batches(
    recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used: list[int] = []

    def counted(model: Model, batches: Iterable[Batch], **options: bool) -> float:
        batches = list(batches)
        used.append(len(batches))
        return heldout_loss(model, batches, **options)

    monkeypatch.setattr("mobilemoe_mlx.train.stage.heldout_loss", counted)
    overrides = ["evaluate_every=3", "data.heldout_stride=3", "data.heldout_tokens=640"]
    train(load_recipe(recipe_path, overrides, ["pretrain"]), tmp_path / "run")
    assert used == [5, 2, 2, 5]  # of 4 rows of 32 tokens; steps 0, 3, 6 and 8
    rows = read_metrics(tmp_path / "run" / "pretrain" / "metrics.jsonl")
    assert [row["step"] for row in rows if "heldout_loss" in row] == [0, 3, 6, 8]


def test_the_progress_bar_shows_loss_speed_eta_and_memory(recipe_path, tmp_path, capfd):
    train(load_recipe(recipe_path, stages=["pretrain"]), tmp_path / "run")
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("pretrain: 100%") and "8/8" in last
    for part in ("<", "loss ", " tok/s", " GB"):
        assert part in last


def test_a_tokenizers_folder_gives_the_model_no_settings(
    recipe_path: Path, tokenizer_folder: Path, tmp_path: Path
):
    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, other)
    (other / "generation_config.json").write_text('{"eos_token_id": [128001]}')
    overrides = [f"tokenizer.path={other}", "tokens=256", "optimizer.warmup_steps=0"]
    overrides.append("model.torch_dtype=float16")
    model = train(load_recipe(recipe_path, overrides, ["pretrain"]), tmp_path / "run")
    settings = json.loads((model / "generation_config.json").read_text())
    assert settings["eos_token_id"] == eos_token_ids(load_tokenizer(tokenizer_folder))
    assert not (tmp_path / "run" / "tokenizer" / "generation_config.json").exists()
    assert read_config(model)["torch_dtype"] == "bfloat16"  # as its tensors are
    mobilemoe_mlx.load(model)


def test_every_stage_ends_with_a_published_checkpoint(finished: Path, tokenizer_folder: Path):
    ends = eos_token_ids(load_tokenizer(tokenizer_folder))
    assert len(ends) == 2
    for stage in STAGES:
        folder = finished / stage / "model"
        config = read_config(folder)
        assert config["eos_token_id"] == ends
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == ends
        assert ("quantization" in config) == (stage == "qat")
        model, tokenizer = mobilemoe_mlx.load(folder)
        assert model.args.quantized == (stage == "qat")
        assert tokenizer.eos_token_ids == set(ends)


def test_what_qat_computes_is_what_its_checkpoint_computes(finished: Path, recipe_path: Path):
    exported, tokenizer = mobilemoe_mlx.load(finished / "qat" / "model")
    trainer = trainer_at_the_end(recipe_path, finished, "qat")
    qat = Model(trainer.model.args)
    qat.update(trainer.computed_parameters())
    plain = Model(trainer.model.args)
    plain.update(trainer.all_parameters())
    for prompt in PROMPTS:
        tokens = mx.array([[tokenizer.bos_token_id, *encode_text(tokenizer, prompt)]])
        ours, theirs = qat(tokens), exported(tokens)
        difference = mx.abs(ours - theirs).max() / mx.abs(theirs).max()
        assert difference.item() < 1e-4  # the issue asks for 1e-3
        # The rounding is not small: the master weights are far from both.
        assert (mx.abs(plain(tokens) - theirs).max() / mx.abs(theirs).max()).item() > 1e-2
        cache = exported.make_cache()
        decoded = [exported(tokens[:, i : i + 1], cache) for i in range(tokens.shape[1])]
        difference = mx.abs(ours - mx.concatenate(decoded, axis=1)).max() / mx.abs(ours).max()
        assert difference.item() < 1e-4


def test_a_qat_step_computes_the_loss_of_the_checkpoint(finished: Path, recipe_path: Path):
    exported, _ = mobilemoe_mlx.load(finished / "qat" / "model")
    batch = some_batch()
    expected = heldout_loss(exported, [batch], document_mask=True)
    trainer = trainer_at_the_end(recipe_path, finished, "qat")
    assert trainer.run(batch).loss == pytest.approx(expected, rel=1e-5)


def test_qat_selects_with_the_biases_that_are_stored(tmp_path: Path):
    trainer = new_trainer(bare_recipe(tmp_path), "qat")
    # bfloat16 has steps of 1/32 here: rounding decides most selections.
    trainer.biases = 4 + 0.02 * mx.random.normal(trainer.biases.shape)
    model = Model(trainer.model.args)
    model.update(trainer.all_parameters())
    batch = some_batch()
    expected = heldout_loss(quantize_model(model), [batch], document_mask=True)
    plain = heldout_loss(model, [batch], document_mask=True)
    assert trainer.run(batch).loss == pytest.approx(expected, rel=1e-5)
    assert abs(plain - expected) > 1e-3


def test_the_three_losses_are_those_of_the_checkpoints(finished: Path, recipe_path: Path):
    report = json.loads((finished / "qat" / "quantization.json").read_text())
    assert report["heldout"] == ["heldout-chat.jsonl"]
    recipe = load_recipe(recipe_path)
    bf16, tokenizer = mobilemoe_mlx.load(finished / "sft" / "model")
    heldout = open_heldout(recipe, recipe.stages["qat"], tokenizer)

    def loss(model: Model) -> float:
        return heldout_loss(model, heldout, document_mask=True)

    assert report["bf16"] == pytest.approx(loss(bf16), rel=1e-5)
    masters = Model(bf16.args)
    masters.update(trainer_at_the_end(recipe_path, finished, "sft").all_parameters())
    nearest = loss(quantize_model(masters))
    assert report["round_to_nearest_int4"] == pytest.approx(nearest, rel=1e-5)
    qat, _ = mobilemoe_mlx.load(finished / "qat" / "model")
    assert report["qat_int4"] == pytest.approx(loss(qat), rel=1e-5)
    assert len({round(report[name], 6) for name in report if name != "heldout"}) == 3


def test_without_heldout_text_there_is_nothing_to_report(
    recipe_path: Path, finished: Path, tmp_path: Path
):
    recipe = load_recipe(recipe_path, ["data.heldout=[]"], ["qat"])
    start = str(finished / "sft" / "model")
    assert (train(recipe, tmp_path / "run", init=start) / "config.json").exists()
    assert not (tmp_path / "run" / "qat" / "quantization.json").exists()


@pytest.mark.parametrize("stage", ["midtrain", "sft", "qat"])
def test_a_later_stage_needs_weights_to_start_from(recipe_path, tmp_path, stage: str):
    with pytest.raises(UserError, match=f"{stage} has no weights to start from.*--init"):
        train(load_recipe(recipe_path, stages=[stage]), tmp_path / "run")
    assert not (tmp_path / "run" / stage / "checkpoints").exists()


def test_a_stage_starts_from_a_finished_model_whose_checkpoints_are_gone(
    recipe_path: Path, finished: Path, tmp_path: Path
):
    run = tmp_path / "run"
    (run / "sft").mkdir(parents=True)
    shutil.copy(finished / "recipe.json", run)
    shutil.copytree(finished / "sft" / "model", run / "sft" / "model")
    train(load_recipe(recipe_path, stages=["qat"]), run)
    # bfloat16 weights instead of the float32 masters: nearly the same start (some INT4 codes and
    # selections differ), far from random weights (about log 480 = 6.2).
    ours, whole = (losses(folder, "qat")[1] for folder in (run, finished))
    assert ours == pytest.approx(whole, rel=0.1)


def test_a_chat_stage_teaches_a_base_tokenizer_the_template(
    recipe_path: Path, finished: Path, tokenizer_folder: Path, tmp_path: Path
):
    base = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folder, base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    assert not load_tokenizer(base).has_chat_template
    recipe = load_recipe(recipe_path, [f"tokenizer.path='{base}'"], ["sft"])
    start = str(finished / "midtrain" / "model")
    model = train(recipe, tmp_path / "run", init=start)
    message = [{"role": "user", "content": "hello"}]
    taught, known = load_tokenizer(model), load_tokenizer(tokenizer_folder)
    assert taught.apply_chat_template(message) == known.apply_chat_template(message)


def test_a_template_of_another_format_is_told_before_training(
    recipe_path: Path, finished: Path, tokenizer_folder: Path, tmp_path: Path
):
    other = Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    (other / "chat_template.jinja").write_text(template)
    start = str(finished / "midtrain" / "model")
    for folder, stage, told in (
        (other, "sft", 1),
        (other, "midtrain", 0),
        (tokenizer_folder, "sft", 0),
    ):
        said: list[str] = []
        recipe = load_recipe(recipe_path, [f"tokenizer.path='{folder}'"], [stage])
        train(recipe, tmp_path / f"{stage}-{folder.name}", init=start, say=said.append)
        lines = [line for line in said if "chat template differs" in line]
        assert len(lines) == told
        assert all(line.startswith("sft: ") and "the template writes '[" in line for line in lines)


def test_a_heldout_loss_that_is_not_finite_stops(
    recipe_path: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = Trainer.run

    def run(trainer: Trainer, batch: Batch) -> step.StepResult:
        result = original(trainer, batch)
        if trainer.step == 3:  # not seen by the loss of this step
            norm = trainer.parameters["model"]["norm"]
            norm["weight"] = mx.where(mx.arange(32) == 3, float("nan"), norm["weight"])
        return result

    monkeypatch.setattr(Trainer, "run", run)
    recipe = load_recipe(recipe_path, ["evaluate_every=3"], ["pretrain"])
    expected = r"pretrain: the held-out loss is nan.*The last good checkpoint: .*step-00000002\.$"
    with pytest.raises(UserError, match=expected):
        train(recipe, tmp_path / "run")


def test_heldout_text_may_be_a_mixture(recipe_path: Path, tokenizer_folder: Path, tmp_path: Path):
    path = write_family(tmp_path / "family", tokenizer_folder)
    (path.parent / "held.toml").write_text(
        'format = "text"\n[[sources]]\nname = "held"\nweight = 1.0\n'
        'files = ["heldout-text.jsonl"]\n'
    )
    tokenizer = load_tokenizer(tokenizer_folder)
    by_file, by_mixture = (
        open_heldout(recipe, recipe.stages["pretrain"], tokenizer)
        for recipe in (load_recipe(path), load_recipe(path, ["data.heldout=held.toml"]))
    )
    assert len(by_file) == len(by_mixture) > 0
    for a, b in zip(by_file, by_mixture, strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
    chat = load_recipe(path, ["data.heldout=held.toml"])
    with pytest.raises(UserError, match="of format 'chat'"):
        open_heldout(chat, chat.stages["sft"], tokenizer)


def test_a_dataset_is_not_both_trained_on_and_held_out(recipe_path: Path, tmp_path: Path):
    path = write_family(tmp_path / "family", tmp_path)
    (path.parent / "ds").mkdir()
    shutil.copy(path.parent / "text.jsonl", path.parent / "ds" / "train.jsonl")
    mixture = 'format = "text"\n[[sources]]\nname = "all"\nweight = 1.0\n'
    (path.parent / "mine.toml").write_text(f'{mixture}path = "{path.parent / "ds"}"\n')
    (path.parent / "held.toml").write_text(f'{mixture}path = "{path.parent}/./ds"\n')
    overrides = [
        f"data.{n}={path.parent / m}.toml" for n, m in (("mixture", "mine"), ("heldout", "held"))
    ]
    with pytest.raises(UserError, match=r"data.heldout: source 'all' is the dataset that source"):
        train(load_recipe(recipe_path, overrides, ["pretrain"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_generate_runs_on_the_int4_checkpoint(finished: Path, capsys):
    folder = str(finished / "qat" / "model")
    texts = []
    for _ in range(2):
        arguments = ["generate", folder, "--prompt", "the cat sees ", "--max-tokens", "8"]
        assert main([*arguments, "--temperature", "0"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].strip()


def test_stages_one_at_a_time_are_the_whole_run(finished: Path, recipe_path: Path, tmp_path: Path):
    for stage in STAGES:
        train(load_recipe(recipe_path, stages=[stage]), tmp_path / "run")
        assert losses(tmp_path / "run", stage) == losses(finished, stage)


def test_a_stage_starts_from_a_checkpoint(finished: Path, recipe_path: Path, tmp_path: Path):
    recipe = load_recipe(recipe_path, stages=["qat"])
    # INT4 weights are on the grid already: rounding them again changes nothing.
    train(recipe, tmp_path / "int4", init=str(finished / "qat" / "model"))
    before = json.loads((finished / "qat" / "quantization.json").read_text())
    after = json.loads((tmp_path / "int4" / "qat" / "quantization.json").read_text())
    assert after["round_to_nearest_int4"] == pytest.approx(before["qat_int4"], rel=1e-5)
    train(recipe, tmp_path / "bf16", init=str(finished / "sft" / "model"))
    after = json.loads((tmp_path / "bf16" / "qat" / "quantization.json").read_text())
    assert after["bf16"] == pytest.approx(before["bf16"], rel=1e-5)


@pytest.mark.parametrize("name", ["num_hidden_layers", "intermediate_size", "rope_theta"])
def test_a_checkpoint_of_another_model_is_refused(finished, recipe_path, tmp_path, name: str):
    recipe = load_recipe(recipe_path, [f"model.{name}=96"], ["sft"])
    with pytest.raises(UserError, match=name):
        train(recipe, tmp_path / "run", init=str(finished / "pretrain" / "model"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.path=''"], "names no tokenizer.*--init"),
        (["model.vocab_size=400"], "480 entries but model.vocab_size is 400"),
        (["data.context=128", "tokens=9999"], r"context \(128\) is beyond.*\(64\)"),
        (["data.mixture=none.toml"], r"Cannot read .*none\.toml"),
        (["data.heldout=none.jsonl"], "none.jsonl"),
        (["epochs=1e308"], r"pretrain.epochs is 1e\+308; it must be a smaller number"),
        (["epochs=1e18"], r"pretrain.epochs is 1e\+18; it must be a smaller number"),
        (["micro_batch_size=3"], "micro_batch_size 3 does not divide"),
    ],
)
def test_what_cannot_run_says_why(recipe_path: Path, tmp_path: Path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(load_recipe(recipe_path, overrides, ["pretrain"]), tmp_path / "run")


def test_divergence_stops_with_the_last_good_checkpoint(recipe_path: Path, tmp_path: Path):
    overrides = ["optimizer.peak_lr=1e30", "checkpoint_every=1"]
    run = tmp_path / "run"
    with pytest.raises(UserError, match="pretrain: step 2: the loss is") as error:
        train(load_recipe(recipe_path, overrides, ["pretrain"]), run)
    # That of step 1 holds the weights that failed.
    good = run / "pretrain" / "checkpoints" / "step-00000000"
    assert str(error.value).endswith(f"The last good checkpoint: {good}.")
    assert losses(run, "pretrain").keys() == {1}
    for value in mx.load(str(good / "weights.safetensors")).values():
        assert mx.isfinite(value).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("routing.bias_update_rate=1e300", "step 1: the experts' selection biases are beyond"),
        ("optimizer.peak_lr=1e38", "after step 1 .* has values that are not finite"),
    ],
)
def test_a_model_that_is_not_finite_is_not_written(
    recipe_path: Path, tmp_path: Path, override: str, message: str
):
    # In one step, whose loss is that of the first weights.
    overrides = [override, "tokens=128", "optimizer.warmup_steps=0", "data.heldout=[]"]
    with pytest.raises(UserError, match=message):
        train(load_recipe(recipe_path, overrides, ["pretrain"]), tmp_path / "run")
    assert not (tmp_path / "run" / "pretrain" / "model").exists()


# --- stored losses ----------------------------------------------------------------------------


def reference_losses(folder: Path) -> dict[str, list[float]]:
    """Losses of a fixed recipe, on fixed bytes, from weights that are numpy's for ever."""
    settings = ["model.vocab_size=128", "model.bos_token_id=0", "model.eos_token_id=[1]"]
    recipe = bare_recipe(folder, [*settings, "optimizer.peak_lr=5e-3", "micro_batch_size=2"])
    model = Model(recipe.model)
    rng = np.random.RandomState(0)  # its numbers are frozen, unlike mlx's and default_rng's

    def weight(value: mx.array) -> mx.array:
        scale = value.shape[-1] ** -0.5
        random = mx.array((rng.standard_normal(value.shape) * scale).astype(np.float32))
        return random if value.ndim > 1 else value

    model.update(tree_map(weight, model.parameters()))
    text = np.frombuffer(RECIPE.encode("ascii"), np.uint8).astype(np.int32)
    found: dict[str, list[float]] = {}
    for stage, steps in (("pretrain", 8), ("qat", 4)):
        trainer = Trainer(model, recipe.stages[stage])
        found[stage] = []
        for _ in range(steps):
            starts = rng.randint(0, len(text) - 33, 4)
            rows = np.stack([text[start : start + 33] for start in starts])
            documents = np.repeat([[0, 1]], [20, 12], axis=1).repeat(4, axis=0)
            loss_mask = np.ones((4, 32), np.float32)
            loss_mask[:, 19] = 0
            batch = Batch(rows[:, :-1], rows[:, 1:], loss_mask, documents)
            found[stage].append(trainer.run(batch).loss)
        model.update(trainer.all_parameters())
    return found


def test_the_losses_are_the_stored_ones(tmp_path: Path):
    """After a change that is meant to change them: `python tests/train/test_training.py`."""
    expected = json.loads(REFERENCE.read_text())
    found = reference_losses(tmp_path)
    assert found.keys() == expected.keys()
    for stage, values in expected.items():
        assert found[stage] == pytest.approx(values, rel=1e-3)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        REFERENCE.parent.mkdir(exist_ok=True)
        REFERENCE.write_text(json.dumps(reference_losses(Path(folder)), indent=2) + "\n")
    print(REFERENCE.read_text())
