"""The schedule at its corners; AdamW and clipping against torch's."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.optimizers import clip_grad_norm
from mlx.utils import tree_flatten, tree_unflatten

from mobilemoe_mlx.train.optimizer import (
    learning_rate,
    make_optimizer,
    rounded_at_random,
    set_learning_rate,
)
from mobilemoe_mlx.train.recipe import OptimizerConfig

PEAK, WARMUP, STEPS = 2e-3, 10, 111


def rate(step: int, **changes) -> float:
    settings = {"peak_lr": PEAK, "warmup_steps": WARMUP, **changes}
    return learning_rate(OptimizerConfig(**settings), step, STEPS)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_schedules_corners(schedule):
    assert rate(0, schedule=schedule) == pytest.approx(PEAK / WARMUP)
    assert rate(WARMUP - 1, schedule=schedule) == pytest.approx(PEAK)
    assert rate(WARMUP, schedule=schedule) == pytest.approx(PEAK)
    assert rate(STEPS - 1, schedule=schedule) == pytest.approx(0.1 * PEAK)
    assert rate(STEPS - 1, schedule=schedule, final_lr_fraction=0.0) == pytest.approx(0, abs=1e-12)
    assert rate(0, schedule=schedule, warmup_steps=0) == PEAK
    # Halfway between: both schedules are at the mean of peak and end.
    assert rate(WARMUP + 50, schedule=schedule) == pytest.approx(0.55 * PEAK)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_rises_then_falls(schedule):
    rates = [rate(step, schedule=schedule) for step in range(STEPS)]
    assert all(np.diff(rates[:WARMUP]) > 0)
    assert all(np.diff(rates[WARMUP:]) < 0)
    assert max(rates) == pytest.approx(PEAK)


def test_cosine_and_linear_have_their_shapes():
    quarter = WARMUP + 25
    assert rate(quarter, schedule="linear") == pytest.approx((0.1 + 0.9 * 0.75) * PEAK)
    cosine = (1 + math.cos(math.pi / 4)) / 2
    assert rate(quarter, schedule="cosine") == pytest.approx((0.1 + 0.9 * cosine) * PEAK)


def test_adamw_is_torchs_with_decay_on_matrices_only():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = {
        "layers.0.experts.weight": (3, 8, 4),
        "layers.0.norm.weight": (8,),
        "layers.1.norm.weight": (8,),
        "embed.weight": (16, 8),
    }
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    config = OptimizerConfig(
        peak_lr=1e-2, beta1=0.8, beta2=0.9, weight_decay=0.3, warmup_steps=3, schedule="linear"
    )
    ours = tree_unflatten([(name, mx.array(value)) for name, value in start.items()])
    optimizer = make_optimizer(config)

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [
        {"params": [p for p in theirs.values() if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in theirs.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=config.eps)
    for step in range(6):
        gradients = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        optimizer.learning_rate = learning_rate(config, step, 6)
        tree = tree_unflatten([(name, mx.array(value)) for name, value in gradients.items()])
        ours = optimizer.apply_gradients(tree, ours)
        for group in reference.param_groups:
            group["lr"] = learning_rate(config, step, 6)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        reference.step()
        for name, value in tree_flatten(ours):
            expected = theirs[name].detach().numpy()
            np.testing.assert_allclose(np.array(value), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_clipping_is_torchs(clip_norm: float):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 5), (7,), (2, 3, 2))]
    clipped, norm = clip_grad_norm(
        {"a": mx.array(values[0]), "b": [mx.array(v) for v in values[1:]]}, clip_norm
    )
    parameters = [torch.nn.Parameter(torch.zeros(v.shape)) for v in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    expected = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip((clipped["a"], *clipped["b"]), parameters, strict=True):
        np.testing.assert_allclose(np.array(ours), theirs.grad.numpy(), rtol=1e-5)


def test_lora_b_has_a_rate_of_its_own():
    """LoRA+: AdamW's first step is the rate, whatever the gradient, so the two differ by it."""
    config = OptimizerConfig(peak_lr=PEAK, weight_decay=0.0)
    names = ("q_proj.lora_a", "q_proj.lora_b", "norm.weight")
    parameters = tree_unflatten([(name, mx.ones((4, 4))) for name in names])
    optimizer = make_optimizer(config, lora_b_rate=16.0)
    optimizer.init(parameters)
    set_learning_rate(optimizer, 1e-3, 16.0)
    updated = optimizer.apply_gradients(parameters, parameters)
    moved = {name: 1 - value[0, 0].item() for name, value in tree_flatten(updated)}
    assert moved["q_proj.lora_b"] == pytest.approx(16e-3, rel=1e-3)
    assert moved["q_proj.lora_a"] == moved["norm.weight"] == pytest.approx(1e-3, rel=1e-3)


def test_rounding_at_random_is_right_on_average():
    mx.random.seed(0)
    # 1 + 2^-9 lies a quarter of the way from 1 to bfloat16's next number, 1 + 2^-7.
    x = mx.full((1 << 16,), 1 + 2**-9)
    rounded = rounded_at_random(x, mx.bfloat16)
    assert rounded.dtype == mx.bfloat16
    values = np.array(rounded.astype(mx.float32))
    assert set(values.tolist()) == {1.0, 1 + 2**-7}
    assert (values > 1).mean() == pytest.approx(0.25, abs=0.01)  # 6 standard deviations
    for value in (0.0, 1.0, -2.5, 2.0**-120):  # what bfloat16 has stays
        exact = rounded_at_random(mx.full((64,), value), mx.bfloat16).astype(mx.float32)
        assert mx.all(exact == value).item()
    assert rounded_at_random(x, mx.float32) is x
