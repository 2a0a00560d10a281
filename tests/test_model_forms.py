"""The forms beside the published one: without a shared expert, and dense; against PyTorch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mlx.utils import tree_flatten
from small_model import small_args

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.accounting.families import read_architecture
from mobilemoe_mlx.checkpoint.load_save import load_model, save
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.compare.compare_models import compare_models
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.compare.torch_model import TorchMobileMoE
from mobilemoe_mlx.config import PRESETS, ModelArgs
from mobilemoe_mlx.engines import open_engine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.finetune.run import FinetuneOptions, finetune
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.train.recipe import load_recipe
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.train.run_info import describe_run

DENSE: dict[str, Any] = {
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "intermediate_size": 0,
    "intermediate_size_mlp": 160,
}
FORMS = {"dense": DENSE, "no shared expert": {"intermediate_size_mlp": 0}}
TOKENS = np.random.default_rng(5).integers(0, 96, 40)


@pytest.fixture(params=FORMS)
def args(request: pytest.FixtureRequest) -> ModelArgs:
    return small_args(num_hidden_layers=2, **FORMS[request.param])


def relative_error(found: Any, wanted: Any) -> float:
    found, wanted = np.asarray(found), np.asarray(wanted)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("quantized", [False, True])
def test_checkpoints_compute_what_pytorch_does(
    args: ModelArgs, quantized: bool, tmp_path: Path
) -> None:
    """Of both layouts, names and shapes as PyTorch's own reader expects them."""
    write_random_checkpoint(tmp_path / "model", args, seed=3, quantized=quantized)
    theirs = load_torch_model(tmp_path / "model")(torch.tensor(TOKENS[None])).logits[0].detach()
    model = load_model(tmp_path / "model", dtype=mx.float32)
    assert relative_error(model(mx.array(TOKENS[None]))[0], theirs) < 1e-5
    cache = model.make_cache()
    parts = [model(mx.array(TOKENS[None, a : a + 8]), cache)[0] for a in range(0, 40, 8)]
    assert relative_error(mx.concatenate(parts), theirs) < 1e-5


@pytest.mark.usefixtures("kernel_is_built")
def test_the_cpu_engine_takes_them(args: ModelArgs, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", args, seed=4, quantized=True)
    theirs = load_torch_model(tmp_path / "model")(torch.tensor(TOKENS[None])).logits[0].detach()
    engine = open_engine(tmp_path / "model", "cpu", precision="exact")
    found = engine.session().feed(TOKENS.tolist(), all_logits=True)
    assert relative_error(found, theirs) < 1e-5


def test_gradients(args: ModelArgs) -> None:
    mx.random.seed(0)
    model = Model(args)
    twin = TorchMobileMoE(args)
    names = {n: n.removesuffix(".weight") if ".experts." in n else n for n, _ in flat(model)}
    twin.load_state_dict({names[n]: torch.tensor(np.array(v)) for n, v in flat(model)})
    tokens = TOKENS[None]

    def loss(model: Model) -> mx.array:
        logits = model(mx.array(tokens[:, :-1]))
        return nn.losses.cross_entropy(logits, mx.array(tokens[:, 1:]), reduction="mean")

    ours, gradients = nn.value_and_grad(model, loss)(model)
    output = twin(torch.tensor(tokens[:, :-1]))
    theirs = F.cross_entropy(output.logits[0], torch.tensor(tokens[0, 1:]))
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    parameters = dict(twin.named_parameters())
    found = tree_flatten(gradients)
    assert len(found) == sum(p.requires_grad for p in parameters.values())
    for name, gradient in found:
        assert relative_error(gradient, parameters[names[name]].grad) < 1e-4, name


def flat(model: Model) -> Any:
    return tree_flatten(model.parameters())


@pytest.mark.usefixtures("datasets_cache")
def test_all_stages_train_them(args: ModelArgs, recipe_path: Path, tmp_path: Path) -> None:
    """From random weights to INT4 by QAT, layers computed again for their gradients."""
    sizes = ("num_local_experts", "num_experts_per_tok", "intermediate_size")
    changes = {name: getattr(args, name) for name in (*sizes, "intermediate_size_mlp")}
    overrides = [f"model.{name}={value}" for name, value in changes.items()]
    recipe = load_recipe(recipe_path, [*overrides, "compute.activation_checkpointing=true"])
    folder = train(recipe, tmp_path / "run", say=lambda _: None)
    after = [
        stage.heldout[-1][1] for stage in describe_run(tmp_path / "run").stages if stage.heldout
    ]
    assert len(after) == 3 and all(loss < math.log(480) for loss in after)
    trained = load_model(folder).args
    assert trained.quantized and changes.items() <= vars(trained).items()
    assert load_torch_model(folder)(torch.tensor(TOKENS[None])).logits.isfinite().all()


def test_a_saved_model_is_loaded_and_counted(args: ModelArgs, tmp_path: Path) -> None:
    model = Model(args)
    save(model, tmp_path / "model")
    again = load_model(tmp_path / "model", dtype=mx.float32)
    costs = account(again.args)
    assert costs.total_parameters == sum(v.size for _, v in flat(model))
    routed = sum(v.size for n, v in flat(model) if ".experts." in n)
    used = args.num_experts_per_tok / args.num_local_experts if routed else 0
    assert costs.active_parameters == costs.total_parameters - routed + round(routed * used)


def test_a_dense_model_is_counted_as_a_llama() -> None:
    dense = {**PRESETS["S"].to_dict(), **DENSE}
    llama = {
        **dense,
        "model_type": "llama",
        "intermediate_size": dense["intermediate_size_mlp"],
        "rope_scaling": None,
    }
    from mobilemoe_mlx.accounting.architecture import mobilemoe

    assert mobilemoe(ModelArgs.from_dict(dense)) == read_architecture(llama)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_local_experts": 0}, "num_experts_per_tok is 4; it must be 0 where num_local"),
        ({**DENSE, "intermediate_size": 32}, "intermediate_size is 32; .* the model is dense"),
        ({**DENSE, "intermediate_size_mlp": 0}, "intermediate_size_mlp is 0; a layer without"),
        ({"num_experts_per_tok": 0}, r"num_experts_per_tok is 0; .* num_local_experts \(12\) 0"),
        ({"intermediate_size": 0}, "intermediate_size is 0; it must be 1 or more"),
    ],
)
def test_contradictions_are_refused_by_name(changes: dict[str, int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        small_args(**changes)


def test_what_cannot_take_them_says_so(args: ModelArgs, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", args, quantized=True)
    told = "needs (routed experts; this model is dense|a shared expert, and this model has none)"
    with pytest.raises(UserError, match=f"A Core ML package {told}"):
        export_coreml(tmp_path / "model", tmp_path / "x.mlpackage")
    assert not (tmp_path / "x.mlpackage").exists()
    with pytest.raises(UserError, match=f"Fine-tuning {told}"):
        finetune(str(tmp_path / "model"), None, tmp_path / "run", FinetuneOptions())
    assert not (tmp_path / "run").exists()
    if not args.num_local_experts:
        with pytest.raises(UserError, match="without experts to be read"):
            open_engine(tmp_path / "model", "cpu", expert_memory=1 << 20)


def test_compare_reports_on_them(args: ModelArgs, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "model", args, quantized=False)
    found = compare_models(tmp_path / "model", num_tokens=24)
    assert found.passed and found.tokens_same_routing == 24
