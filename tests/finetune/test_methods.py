"""What each method trains and what it leaves alone; its gradients against PyTorch; its recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from finetune_fixtures import SHORT
from mlx.utils import tree_flatten, tree_unflatten
from training_fixtures import ROOT, random_batch

from mobilemoe_mlx.adapters.adapter_file import load_adapters
from mobilemoe_mlx.adapters.base_digest import base_digest
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.chosen_experts import choose_experts, merge_chosen_experts
from mobilemoe_mlx.finetune.expert_load import ExpertLoad, expert_load
from mobilemoe_mlx.finetune.method import load_base, prepare, write_result
from mobilemoe_mlx.finetune.recipe import (
    METHODS,
    ExpertChoice,
    FinetuneConfig,
    load_finetune_recipe,
)
from mobilemoe_mlx.train.run_folder import StageFolder
from mobilemoe_mlx.train.step import Trainer

OF_INT4 = ("qlora", "qat-lora", "full", "qat")


def config(args: ModelArgs, method: str, *overrides: str) -> FinetuneConfig:
    given = (*SHORT, "data.path=unused", *overrides)
    return load_finetune_recipe(None, method, given, args, on_cpu=True).for_data(None)


def batch(seed: int = 0) -> Batch:
    return random_batch(2, 48, 480, seed)


def trainer_of(folder: Path, args: ModelArgs, method: str, *overrides: str) -> Trainer:
    settings = config(args, method, *overrides)
    model = load_base(folder, settings)
    prepare(model, settings, 0, [batch()])
    return Trainer(model, settings)


def arrays(tree: Any) -> dict[str, np.ndarray]:
    """The tree's leaves as bytes, so that any type is compared bit for bit.

    Selection biases are float32 while a model is trained, whatever they are stored as.
    """
    return {
        name: np.array((v.astype(mx.float32) if "expert_bias" in name else v).view(mx.uint8))
        for name, v in tree_flatten(tree)
    }


BASES = [
    *((method, "bf16") for method in METHODS if method != "qlora"),
    *((method, "int4") for method in OF_INT4),
]


@pytest.fixture
def base(request: pytest.FixtureRequest) -> tuple[str, Path, ModelArgs]:
    """The method, and a checkpoint to use it on."""
    method, kind = request.param
    args: ModelArgs = request.getfixturevalue("tiny_args")
    args = dataclasses.replace(args, quantized=kind == "int4")
    return method, request.getfixturevalue(f"{kind}_folder"), args


@pytest.mark.parametrize("base", BASES, ids="-".join, indirect=True)
def test_a_method_learns_and_leaves_the_rest_alone(base):
    method, folder, args = base
    rate = "optimizer.peak_lr=1e-2"
    trainer = trainer_of(folder, args, method, rate, "steps=20", "optimizer.warmup_steps=1")
    trained = {name for name, _ in tree_flatten(trainer.parameters)}
    before = {n: a for n, a in arrays(trainer.model.parameters()).items() if n not in trained}
    found = [trainer.run(batch()).loss for _ in range(8)]
    assert found[-1] < 0.97 * found[0]
    after = arrays(trainer.all_parameters())
    moved = {n for n, value in before.items() if not np.array_equal(after[n], value)}
    biases = {n for n in before if n.endswith("expert_bias")}
    assert moved <= biases if trainer.config.routing.train else not moved
    routers = {n for n in trained if "router" in n}
    assert bool(routers) == trainer.config.routing.train
    # Two moments for each trained number and nothing else, but each part's rate and step.
    state = [value for _, value in tree_flatten(trainer.optimizer.state) if value.size > 1]
    count = sum(value.size for _, value in tree_flatten(trainer.parameters))
    assert sum(value.size for value in state) == 2 * count
    assert {value.dtype for value in state} == {mx.float32}


def test_an_adapter_keeps_the_selection_biases_that_moved(bf16_folder, tiny_args, tmp_path):
    given = ("routing.train=true", "adapter.modules=['router']", "routing.bias_update_rate=0.1")
    trainer = trainer_of(bf16_folder, tiny_args, "lora", *given)
    before = mx.array(trainer.biases)
    trainer.run(batch())
    assert not mx.array_equal(trainer.biases, before).item()
    digest = base_digest(bf16_folder)
    adapter = write_result(trainer, trainer.config, StageFolder(tmp_path), digest, bf16_folder)
    model = load_base(bf16_folder, trainer.config)
    load_adapters(model, [(adapter, 1.0)])
    biases = mx.stack([layer.feed_forward.expert_bias for layer in model.layers])
    assert mx.array_equal(biases.astype(mx.float32), trainer.biases).item()
    tokens = mx.array(batch(1).inputs)
    model.eval()
    trainer.model.eval()
    assert mx.allclose(model(tokens), trainer.model(tokens), rtol=1e-5, atol=1e-6).item()


def test_masters_in_bfloat16_learn_with_float32_moments(bf16_folder, tiny_args):
    overrides = ("weights=bfloat16", "optimizer.peak_lr=1e-4", "optimizer.warmup_steps=1")
    half = trainer_of(bf16_folder, tiny_args, "full", "steps=30", *overrides)
    types = {name: value.dtype for name, value in tree_flatten(half.parameters)}
    assert set(types.values()) == {mx.bfloat16}
    # A rate far below bfloat16's spacing at most weights: to nearest, hardly any would move.
    found = [half.run(batch()).loss for _ in range(20)]
    single = trainer_of(bf16_folder, tiny_args, "full", "steps=30", *overrides[1:])
    expected = [single.run(batch()).loss for _ in range(20)]
    assert found[-1] - found[0] == pytest.approx(expected[-1] - expected[0], rel=0.15)
    for _, value in tree_flatten(half.optimizer.state):
        assert value.dtype in (mx.float32, mx.uint64)


# --- gradients against PyTorch ------------------------------------------------------------------


def torch_gradients(model: Any, weights: dict[str, np.ndarray], each: Batch) -> dict[str, Any]:
    """PyTorch's gradient of the mean loss for every weight of a float model with `weights`."""
    torch = pytest.importorskip("torch")
    from mobilemoe_mlx.compare.torch_model import TorchMobileMoE

    reference = TorchMobileMoE(dataclasses.replace(model.args, quantized=False))
    published = {
        name.removesuffix(".weight") if ".experts." in name else name: torch.tensor(value)
        for name, value in weights.items()
    }
    reference.load_state_dict(published)
    logits = reference(torch.tensor(each.inputs).long()).logits.flatten(0, 1)
    mask = torch.tensor(each.loss_mask).flatten()
    losses = torch.nn.functional.cross_entropy(
        logits, torch.tensor(each.targets).flatten().long(), reduction="none"
    )
    ((losses * mask).sum() / mask.sum()).backward()
    return {
        f"{name}.weight" if ".experts." in name else name: value.grad.numpy()
        for name, value in reference.named_parameters()
        if value.grad is not None
    }


def effective(model: Any) -> dict[str, np.ndarray]:
    """The float weights that a model with LoRA stands for, by the definition of LoRA."""
    flat = {name: np.array(v.astype(mx.float32)) for name, v in tree_flatten(model.parameters())}
    out = {}
    for name, value in flat.items():
        path, _, leaf = name.rpartition(".")
        if leaf in ("lora_a", "lora_b"):
            continue
        module = path.removesuffix(".linear")
        if f"{module}.lora_a" in flat:
            update = dict(model.named_modules())[module].scale * (
                flat[f"{module}.lora_a"] @ flat[f"{module}.lora_b"]
            )
            value = value + (update if ".experts." in module else update.T)
        out[f"{module}.{leaf}"] = value
    return out


def ours(trainer: Trainer, each: Batch) -> dict[str, np.ndarray]:
    targets = float(each.loss_mask.sum())
    gradients = trainer.gradients(each, targets, 1.0)[1]
    return {name: np.array(value) for name, value in tree_flatten(gradients)}


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    scale = np.abs(expected).max()
    assert scale > 0, name
    # float32 through two layers, sums of a few hundred terms: as in tests/train/test_gradients.py.
    assert np.abs(found - expected).max() < 2e-4 * scale, name


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_gradients_of_adapters_are_torchs(bf16_folder, tiny_args, checkpointing):
    overrides = ("data.document_mask=false", f"compute.activation_checkpointing={checkpointing}")
    trainer = trainer_of(bf16_folder, tiny_args, "lora", *overrides)
    rng = np.random.default_rng(0)
    trainer.adopt(
        tree_unflatten(
            [
                (name, mx.array(0.02 * rng.normal(size=value.shape), mx.float32))
                for name, value in tree_flatten(trainer.parameters)
            ]
        )
    )
    modules = dict(trainer.model.named_modules())
    values = {name: np.array(value) for name, value in tree_flatten(trainer.parameters)}
    reference = torch_gradients(trainer.model, effective(trainer.model), batch())
    found = ours(trainer, batch())
    assert len(found) == 2 * 2 * 9  # a and b of nine modules in two layers
    for name, gradient in found.items():
        path, _, leaf = name.rpartition(".")
        d_weight = reference[f"{path}.weight"]  # [out, in], of experts [experts, in, out]
        d_matrix = d_weight if ".experts." in path else d_weight.T
        a, b = values[f"{path}.lora_a"], values[f"{path}.lora_b"]
        scale = modules[path].scale
        if leaf == "lora_a":
            expected = scale * d_matrix @ np.swapaxes(b, -1, -2)
        else:
            expected = scale * np.swapaxes(a, -1, -2) @ d_matrix
        assert_close(gradient, expected, name)


def test_gradients_of_chosen_experts_are_torchs(bf16_folder, tiny_args):
    trainer = trainer_of(bf16_folder, tiny_args, "experts", "data.document_mask=false")
    weights = {
        name.replace(".linear.", "."): np.array(value.astype(mx.float32))
        for name, value in tree_flatten(trainer.model.parameters())
        if not name.endswith(".chosen")
    }
    reference = torch_gradients(trainer.model, weights, batch())
    modules = dict(trainer.model.named_modules())
    for name, gradient in ours(trainer, batch()).items():
        path = name.removesuffix(".chosen")
        numbers = np.array(modules[path]._numbers)
        assert len(gradient) == len(numbers) < tiny_args.num_local_experts
        assert_close(gradient, reference[f"{path}.weight"][numbers], name)


def test_few_tokens_have_the_gradient_of_many(bf16_folder, tiny_args):
    """Below 64 pairs the experts are not sorted, and another form of the product is used."""
    trainer = trainer_of(bf16_folder, tiny_args, "experts", "data.document_mask=false")
    few = Batch(*(part[:1, :20] for part in batch()))
    twice = Batch(*(np.concatenate([part] * 2) for part in few))
    for name, gradient in ours(trainer, few).items():
        assert_close(gradient, ours(trainer, twice)[name], name)


# --- the choice of experts ----------------------------------------------------------------------


def test_the_fewest_experts_that_reach_the_share_are_chosen():
    load = ExpertLoad(
        tokens=mx.array([[50.0, 0, 30, 20], [25, 25, 25, 25]]),
        weights=mx.array([[1.0, 0, 8, 1], [1, 2, 3, 4]]),
    )
    assert choose_experts(load, ExpertChoice(share=0.2)) == [[0], [0]]
    assert choose_experts(load, ExpertChoice(share=0.5)) == [[0], [0, 1]]
    assert choose_experts(load, ExpertChoice(share=0.51)) == [[0, 2], [0, 1, 2]]
    assert choose_experts(load, ExpertChoice(share=0.5, use="weights")) == [[2], [2, 3]]
    assert choose_experts(load, ExpertChoice(share=1.0)) == [[0, 2, 3], [0, 1, 2, 3]]


def test_the_load_counts_real_tokens(bf16_folder, tiny_args):
    model = load_base(bf16_folder, config(tiny_args, "lora"))
    each = batch()
    load = expert_load(model, [each, each], document_mask=True)
    real = int((each.documents >= 0).sum())
    slots = tiny_args.num_experts_per_tok
    assert load.tokens.sum(axis=-1).tolist() == [2 * real * slots] * tiny_args.num_hidden_layers
    assert all(0 < value <= 1 for value in load.entropy)
    # The published models' routing weights of a token add up to their scaling factor.
    total = tiny_args.routed_scaling_factor if tiny_args.norm_topk_prob else None
    if total is not None:
        assert load.weights.sum(axis=-1).tolist() == pytest.approx([2 * real * total] * 2, rel=1e-4)


def test_merged_experts_compute_what_was_trained(bf16_folder, tiny_args):
    trainer = trainer_of(bf16_folder, tiny_args, "experts", "optimizer.peak_lr=1e-2", "steps=20")
    untouched = {n: a for n, a in arrays(trainer.model.parameters()).items() if "linear" in n}
    for _ in range(3):
        trainer.run(batch())
    model, tokens = trainer.model, mx.array(batch().inputs)
    trainer.all_parameters()
    expected = model(tokens)
    modules = {n: m for n, m in model.named_modules() if hasattr(m, "merged")}
    chosen = {name: np.array(m._numbers) for name, m in modules.items()}
    merge_chosen_experts(model)
    assert mx.allclose(model(tokens), expected, rtol=1e-5, atol=1e-5).item()
    names = dict(tree_flatten(model.parameters()))
    for name, numbers in chosen.items():
        others = [e for e in range(tiny_args.num_local_experts) if e not in numbers]
        after = np.array(names[f"{name}.weight"].view(mx.uint8))
        before = untouched[f"{name}.linear.weight"]
        assert np.array_equal(after[others], before[others])
        assert not np.array_equal(after[numbers], before[numbers])


# --- recipes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_of_its_name(tiny_args, method):
    args = dataclasses.replace(tiny_args, quantized=method == "qlora")
    recipe = load_finetune_recipe(None, method, [], args, on_cpu=False)
    assert recipe.method == method
    assert (recipe.adapter is not None) == ("lora" in method or method == "dora")
    in_float32 = args.quantized or method in ("full", "qat")
    assert recipe.compute.dtype == ("float32" if args.quantized else "bfloat16") or in_float32
    assert recipe.data.context == 256  # the model's own longest


def test_one_key_chooses_the_scales_of_both_methods_through_int4(tiny_args: ModelArgs):
    given = ["scale_rule=paper"]
    qat = load_finetune_recipe(None, "qat", given, tiny_args, on_cpu=True)
    adapters = load_finetune_recipe(None, "qat-lora", given, tiny_args, on_cpu=True)
    assert qat.scale_rule == "paper"
    assert adapters.adapter is not None and adapters.adapter.scale_rule == "paper"


def test_the_default_method_follows_the_base(tiny_args):
    assert load_finetune_recipe(None, None, [], tiny_args, on_cpu=True).method == "lora"
    packed = dataclasses.replace(tiny_args, quantized=True)
    assert load_finetune_recipe(None, None, [], packed, on_cpu=True).method == "qlora"


def test_one_layer_may_be_given_as_a_number(tiny_args):
    recipe = load_finetune_recipe(None, "lora", ["adapter.layers=1"], tiny_args, on_cpu=True)
    assert recipe.adapter is not None and recipe.adapter.layer_numbers(2) == (1,)


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("lora", ["adapter.rnak=3"], "adapter has no key 'rnak' .did you mean 'rank'"),
        ("lora", ["adapter.rank=0"], "adapter.rank is 0; it must be >= 1"),
        (
            "lora",
            ["adapter.modules=['atention']"],
            "no module 'atention' .did you mean 'attention'",
        ),
        ("lora", ["adapter.layers=0-7"], "the model has the layers 0 to 1"),
        ("lora", ["adapter.layers=5"], "the model has the layers 0 to 1"),
        ("lora", ["method=qat"], "write `--method qat`"),
        ("lora", ["experts.share=0.3"], "'experts' is a key of --method experts, .* is lora"),
        ("full", ["adapter.rank=3"], "'adapter' is a key of --method lora or dora or .* is full"),
        ("full", ["optimizer.lora_plus_ratio=4"], "lora_plus_ratio is for adapters, and full"),
        ("lora", ["adaptor.rank=3"], "no key 'adaptor' .did you mean 'adapter'"),
        ("lora", ["warmup_fraction=0"], "did you mean 'optimizer.warmup_fraction'"),
        ("experts", ["experts.share=0"], "experts.share is 0.0; it must be above 0"),
        ("lora", ["weights=bfloat16"], "'weights' is a key of --method full, .* is lora"),
        ("lora", ["steps=3", "epochs=2"], "both epochs and steps"),
        ("lora", ["epochs=0"], "neither epochs nor steps"),
        ("lora", ["data.context=512"], r"data.context \(512\) is beyond .* \(256\)"),
        ("lora", ["routing.train=true"], "add 'router' to adapter.modules"),
        (
            "qat-lora",
            ["routing.train=true", "adapter.modules=['router']"],
            "adapters through INT4 leave the selection biases",
        ),
        ("lora", ["peak_lr"], "is not of the form KEY=VALUE"),
        ("lora", ["epochs.x=1"], "epochs is a value, not a table"),
        ("qlora", [], "qlora is for INT4 checkpoints, and this one is BF16"),
        ("lorra", [], "no method 'lorra' .did you mean 'lora'"),
    ],
)
def test_a_bad_recipe_says_what_is_wrong(tiny_args, method, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        load_finetune_recipe(None, method, overrides, tiny_args, on_cpu=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["lora", "dora", "experts"])
def test_int4_is_refused_where_a_float_base_is_meant(tiny_args, method):
    args = dataclasses.replace(tiny_args, quantized=True)
    with pytest.raises(UserError, match="is for BF16 checkpoints, and this one is INT4: use qlora"):
        load_finetune_recipe(None, method, [], args, on_cpu=True)


def test_a_recipe_of_ones_own_and_its_method(tiny_args, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('method = "lora"\nsteps = 5\nbatch_size = 1\n[optimizer]\npeak_lr = 1e-3\n')
    assert load_finetune_recipe(path, None, [], tiny_args, on_cpu=True).steps == 5
    with pytest.raises(UserError, match="of the method lora, and --method says dora"):
        load_finetune_recipe(path, "dora", [], tiny_args, on_cpu=True)


def test_the_length_of_the_data_decides_steps_warmup_and_evaluations(tiny_args):
    recipe = load_finetune_recipe(None, "lora", ["epochs=2"], tiny_args, on_cpu=True)
    counted = recipe.for_data(50.5)
    assert (counted.steps, counted.evaluate_every) == (101, 10)
    assert counted.optimizer.warmup_steps == 6  # 5 % of 101, rounded up
    assert (counted.routing.bias_update_rate, counted.routing.z_loss) == (0, 0)
    with pytest.raises(UserError, match="epochs needs data whose length is known"):
        recipe.for_data(None)
    late = load_finetune_recipe(None, "lora", ["optimizer.warmup_steps=9"], tiny_args, on_cpu=True)
    with pytest.raises(UserError, match=r"warmup_steps \(9\) leaves nothing of the run's 3 steps"):
        late.for_data(1.0)


@pytest.mark.parametrize("method", METHODS)
def test_info_describes_every_recipe(method, capsys):
    assert main(["info", str(ROOT / "recipes" / "finetune" / f"{method}.toml")]) == 0
    said = capsys.readouterr().out
    assert f"fine-tuning by {method}" in said and "peak learning rate" in said
