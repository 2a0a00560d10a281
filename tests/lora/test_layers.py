"""Adapters against mlx-lm's own layers, and those of experts against a loop in PyTorch."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding as TheirEmbedding
from mlx_lm.tuner.lora import LoRALinear as TheirLinear
from mlx_lm.tuner.lora import LoRASwitchLinear

from mobilemoe_mlx import experts as experts_module
from mobilemoe_mlx import int4
from mobilemoe_mlx.config import SCALE_RULES
from mobilemoe_mlx.experts import ExpertLinear, Experts
from mobilemoe_mlx.linux_cpu import int4_product
from mobilemoe_mlx.lora.embedding import LoRAEmbedding
from mobilemoe_mlx.lora.experts import LoRAExpertLinear
from mobilemoe_mlx.lora.linear import LoRALinear
from mobilemoe_mlx.lora.low_rank import LowRank, float_matrix

SCALE, RANK = 1.5, 3
EXPERTS, HIDDEN, WIDTH, SLOTS = 7, 64, 32, 3


def close(found: mx.array, expected: Any, tolerance: float) -> None:
    """Differs by at most `tolerance` of the largest value expected, or of 1."""
    expected = np.array(expected, np.float64)
    assert tuple(found.shape) == expected.shape
    error = np.abs(np.array(found.astype(mx.float32), np.float64) - expected).max()
    assert error <= tolerance * max(np.abs(expected).max(), 1.0)


def trained(layer: Any) -> None:
    """Give a layer's `lora_b`, and DoRA's lengths, other values than the first."""
    layer.lora_b = mx.random.normal(layer.lora_b.shape) * 0.3
    if "m" in layer:
        layer.m = layer.m * mx.random.uniform(0.5, 1.5, layer.m.shape)


def run(layer: Any, x: mx.array, d_y: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    """(Result, gradients of its adapter and of x)."""

    def loss(parameters: Any, x: mx.array) -> tuple[mx.array, mx.array]:
        layer.update(parameters)
        y = layer(x)
        return (y.astype(mx.float32) * d_y).sum(), y

    parameters = {n: layer[n] for n in ("lora_a", "lora_b", "m") if n in layer}
    (_, y), (gradients, d_x) = mx.value_and_grad(loss, argnums=(0, 1))(parameters, x)
    return y, {**gradients, "x": d_x}


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_linear_as_mlx_lm(kind: str, quantised: bool, rows: int, dtype: mx.Dtype):
    mx.random.seed(rows)
    inputs, outputs = (64, 33) if quantised else (37, 33)
    base: Any = nn.Linear(inputs, outputs, bias=False)
    base.weight = base.weight.astype(dtype)
    if quantised:
        base = nn.QuantizedLinear.from_linear(base, group_size=32, bits=4)
    ours = LoRALinear(base, r=RANK, scale=SCALE, dora=kind == "dora")
    cls = DoRALinear if kind == "dora" else TheirLinear
    theirs = cls.from_base(base, r=RANK, scale=SCALE)
    trained(theirs)
    assert ours.lora_a.shape == theirs.lora_a.shape
    ours.update({n: theirs[n] for n in ("lora_a", "lora_b", "m") if n in theirs})
    x = mx.random.normal((rows, inputs)).astype(dtype)
    d_y = mx.random.normal((rows, outputs))
    (y, gradients), (expected, others) = run(ours, x, d_y), run(theirs, x, d_y)
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == mx.float32 else 3e-2
    close(y, expected.astype(mx.float32), tolerance)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        close(gradient, others[name].astype(mx.float32), tolerance)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_embedding_as_mlx_lm(quantised: bool, head: bool):
    base: Any = nn.Embedding(51, 64)
    if quantised:
        base = nn.QuantizedEmbedding.from_embedding(base, group_size=32, bits=4)
    ours = LoRAEmbedding(base, r=RANK, scale=SCALE)
    theirs = TheirEmbedding.from_base(base, r=RANK, scale=SCALE)
    trained(theirs)
    ours.update({n: theirs[n] for n in ("lora_a", "lora_b")})
    tokens = mx.array([[3, 50, 0, 3]])
    x = mx.random.normal((4, 64))

    def loss(layer: Any, parameters: Any) -> mx.array:
        layer.update(parameters)
        return mx.square(layer.as_linear(x) if head else layer(tokens)).sum()

    parameters = {n: theirs[n] for n in ("lora_a", "lora_b")}
    found = mx.value_and_grad(lambda p: loss(ours, p))(parameters)
    expected = mx.value_and_grad(lambda p: loss(theirs, p))(parameters)
    for (_, value), (_, other) in zip(tree_flatten(found), tree_flatten(expected), strict=True):
        close(value, other, 1e-5)


def test_embedding_of_dora_in_numpy():
    base = nn.Embedding(51, 64)
    layer = LoRAEmbedding(base, r=RANK, scale=SCALE, dora=True)
    trained(layer)
    summed = np.array(base.weight, np.float64) + SCALE * np.array(layer.lora_a, np.float64) @ (
        np.array(layer.lora_b, np.float64)
    )
    lengths = np.linalg.norm(summed, axis=1, keepdims=True)
    matrix = np.array(layer.m)[:, None] * summed / lengths
    close(layer(mx.array([4, 50])), matrix[[4, 50]], 1e-5)
    x = mx.random.normal((3, 64))
    close(layer.as_linear(x), np.array(x) @ matrix.T, 1e-5)


@pytest.mark.parametrize("sorted_indices", [False, True])
def test_experts_as_mlx_lm(sorted_indices: bool):
    """Their matrices are transposed: [experts, out, in], lora_a [experts, r, in]."""
    mx.random.seed(3)
    base = ExpertLinear(EXPERTS, 37, 33)
    switch = SwitchLinear(37, 33, EXPERTS, bias=False)
    switch.weight = base.weight.swapaxes(-1, -2)
    ours = base.to_lora(r=RANK, scale=SCALE)
    theirs = LoRASwitchLinear.from_base(switch, r=RANK, scale=SCALE)
    trained(ours)
    theirs.update({n: ours[n].swapaxes(-1, -2) for n in ("lora_a", "lora_b")})
    indices = mx.array([0, 0, 2, 3, 6, 6], mx.uint32)
    if not sorted_indices:
        indices = indices[::-1]
    x, d_y = mx.random.normal((6, 5, 37)), mx.random.normal((6, 5, 33))

    def loss(layer: Any, parameters: Any, x: mx.array) -> mx.array:
        layer.update(parameters)
        return (layer(x, indices, sorted_indices) * d_y).sum()

    def gradients(layer: Any) -> Any:
        parameters = {n: layer[n] for n in ("lora_a", "lora_b")}
        return mx.value_and_grad(lambda p, x: loss(layer, p, x), argnums=(0, 1))(parameters, x)

    value, (found, d_x) = gradients(ours)
    their_value, (expected, their_d_x) = gradients(theirs)
    close(value, their_value, 1e-5)
    close(d_x, their_d_x, 1e-5)
    for name in ("lora_a", "lora_b"):
        close(found[name], expected[name].swapaxes(-1, -2), 1e-5)


def routing(kind: str, tokens: int) -> np.ndarray:
    """uint32 [tokens, slots]; experts 5 and 6 are never chosen."""
    rng = np.random.default_rng(tokens)
    if kind == "one expert":
        return np.full((tokens, SLOTS), 2, np.uint32)
    return np.stack([rng.permutation(5)[:SLOTS] for _ in range(tokens)]).astype(np.uint32)


def tensor(x: mx.array) -> torch.Tensor:
    return torch.tensor(np.array(x.astype(mx.float32)), dtype=torch.float64)


def in_torch(
    layer: Experts, x: mx.array, indices: np.ndarray, weights: mx.array, d_y: mx.array
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same by a loop over experts, in float64: result and gradients."""
    leaves = {"x": tensor(x), "weights": tensor(weights)}
    for name in ("gate_up_proj", "down_proj"):
        for part in ("lora_a", "lora_b", "m"):
            if part in layer[name]:
                leaves[f"{name}.{part}"] = tensor(layer[name][part])
    for leaf in leaves.values():
        leaf.requires_grad_()

    def matrix(name: str, expert: int) -> torch.Tensor:
        adapter = layer[name]
        base = tensor(float_matrix(adapter.linear))[expert]
        update = SCALE * leaves[f"{name}.lora_a"][expert] @ leaves[f"{name}.lora_b"][expert]
        if adapter.scale_rule is not None:
            # Of the float32 sum: half a step away from a code, float64 may choose another one.
            summed = float_matrix(adapter.linear) + SCALE * (adapter.lora_a @ adapter.lora_b)
            rounded = tensor(int4.fake_quantize(summed, adapter.scale_rule))[expert]
            return rounded + update - update.detach()  # straight through
        if "m" not in adapter:
            return base + update
        length = (base + update).norm(dim=0).detach()
        return leaves[f"{name}.m"][expert] / length * (base + update)

    total = torch.zeros_like(leaves["x"])
    for expert in range(EXPERTS):
        token, slot = np.nonzero(indices == expert)
        rows = leaves["x"][token]
        gate, up = (rows @ matrix("gate_up_proj", expert)).chunk(2, dim=-1)
        y = (torch.nn.functional.silu(gate) * up) @ matrix("down_proj", expert)
        total = total.index_add(0, torch.tensor(token), y * leaves["weights"][token, slot, None])
    (total * tensor(d_y)).sum().backward()
    return total.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def adapted_experts(base: str, dtype: mx.Dtype, **options: Any) -> Experts:
    layer = Experts(HIDDEN, WIDTH, EXPERTS)
    layer.update({n: {"weight": layer[n].weight.astype(dtype)} for n in layer.children()})
    if base == "int4":
        nn.quantize(layer, group_size=32, bits=4)
        for linear in layer.children().values():
            linear.scales, linear.biases = (
                s.astype(mx.float16) for s in (linear.scales, linear.biases)
            )
    layer.freeze()
    for name in ("gate_up_proj", "down_proj"):
        layer[name] = LoRAExpertLinear(layer[name], r=RANK, scale=SCALE, **options)
        trained(layer[name])
    return layer


# 64 pairs are where rows are sorted; PyTorch's loop has neither blocks nor padding.
@pytest.mark.parametrize(("tokens", "block"), [(1, 32), (21, 32), (22, 32), (200, 32), (200, 1)])
@pytest.mark.parametrize("kind", ["spread", "one expert"])
@pytest.mark.parametrize("base", ["float32", "bfloat16", "int4"])
@pytest.mark.parametrize("form", ["lora", "dora", "unclipped", "paper"])
def test_experts_as_a_loop_in_pytorch(
    tokens: int, kind: str, base: str, form: str, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(experts_module, "_CPU_BLOCK", block)
    monkeypatch.setattr(int4_product, "_ROWS", 4)
    mx.random.seed(tokens)
    options: dict[str, Any] = {"dora": form == "dora"}
    if form in SCALE_RULES:
        options["scale_rule"] = form
    dtype = mx.bfloat16 if base == "bfloat16" else mx.float32
    layer = adapted_experts(base, dtype, **options)
    x = mx.random.normal((tokens, HIDDEN)).astype(dtype)
    weights = mx.random.uniform(shape=(tokens, SLOTS))
    d_y = mx.random.normal((tokens, HIDDEN))
    indices = routing(kind, tokens)

    def loss(parameters: Any, x: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
        layer.update(parameters)
        y = layer.weighted_sum(x, mx.array(indices), weights)
        return (y.astype(mx.float32) * d_y).sum(), y

    (_, y), (gradients, d_x, d_weights) = mx.value_and_grad(loss, argnums=(0, 1, 2))(
        layer.trainable_parameters(), x, weights
    )
    found = {**dict(tree_flatten(gradients)), "x": d_x, "weights": d_weights}
    expected, others = in_torch(layer, x, indices, weights, d_y)
    # bfloat16: its rounding of 4e-3 in each of eight products and their sums.
    tolerance = 2e-5 if dtype == mx.float32 else 6e-2
    close(y, expected, tolerance)
    assert found.keys() == others.keys()
    for name, gradient in found.items():
        close(gradient, others[name], tolerance)


@pytest.mark.parametrize("form", ["lora", "dora"])
def test_the_first_step_computes_what_the_base_does(form: str):
    base = nn.Linear(37, 33, bias=False)
    base.weight = base.weight.at[3].multiply(0.0)  # an output that is always zero
    x = mx.random.normal((5, 37))
    assert mx.array_equal(LoRALinear(base, dora=form == "dora")(x), base(x))
    embedding = nn.Embedding(19, 32)
    adapted = LoRAEmbedding(embedding, dora=form == "dora")
    assert mx.array_equal(adapted(mx.array([3, 18])), embedding(mx.array([3, 18])))
    h = mx.random.normal((4, 32))
    assert mx.array_equal(adapted.as_linear(h), embedding.as_linear(h))
    experts = ExpertLinear(EXPERTS, 37, 33)
    indices = mx.array([0, 1, 1], mx.uint32)
    rows = mx.random.normal((3, 4, 37))
    layer = LoRAExpertLinear(experts, dora=form == "dora")
    assert mx.array_equal(layer(rows, indices, True), experts(rows, indices, True))


def test_dropout_is_of_training_and_keeps_the_mean():
    layer = LoRALinear(nn.Linear(64, 32, bias=False), dropout=0.25)
    x = mx.ones((400, 64))
    dropped = layer.dropped(x)
    assert (dropped == 0).mean().item() == pytest.approx(0.25, abs=0.02)  # 8 standard deviations
    assert dropped.max().item() == pytest.approx(1 / 0.75)
    layer._dropout_key = mx.random.key(1)
    assert mx.array_equal(layer.dropped(x), layer.dropped(x))
    layer.eval()
    assert mx.array_equal(layer.dropped(x), x)


def test_dropout_through_int4_is_refused():
    with pytest.raises(ValueError, match="dropout"):
        LowRank((8, 8), r=2, scale=1.0, dropout=0.1, scale_rule="paper")
