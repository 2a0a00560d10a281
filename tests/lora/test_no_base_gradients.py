"""Nothing of the size of a frozen matrix is made for its gradient."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mobilemoe_mlx.experts import Experts
from mobilemoe_mlx.lora.experts import LoRAExpertLinear
from mobilemoe_mlx.lora.linear import LoRALinear

EXPERTS, HIDDEN, WIDTH, TOKENS = 32, 512, 512, 48


def extra_memory(step: Any) -> int:
    """Bytes that `step` needs beside what exists before it."""
    mx.eval(step())
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(step())
    return mx.get_peak_memory() - before


@pytest.mark.parametrize("adapted", [True, False])
def test_frozen_experts(adapted: bool):
    """With adapters, and without: then the gradient only passes through."""
    layer = Experts(HIDDEN, WIDTH, EXPERTS)
    weights = sum(linear.weight.nbytes for linear in layer.children().values())
    layer.freeze()
    x = mx.random.normal((TOKENS, HIDDEN))
    indices = mx.random.randint(0, EXPERTS, (TOKENS, 2)).astype(mx.uint32)
    slots = mx.ones((TOKENS, 2))
    if adapted:
        for name in ("gate_up_proj", "down_proj"):
            layer[name] = LoRAExpertLinear(layer[name], r=4)
    mx.eval(layer.parameters(), x, indices)

    def step() -> Any:
        def loss(parameters: Any, x: mx.array) -> mx.array:
            layer.update(parameters)
            return mx.square(layer.weighted_sum(x, indices, slots)).sum()

        return mx.grad(loss, argnums=(0, 1))(layer.trainable_parameters(), x)

    # Gradients of the base would take `weights`, 100 MB; each array of rows takes 2 to 4 MB.
    assert extra_memory(step) < weights * 0.75


def test_frozen_linears():
    base = nn.Linear(2048, 2048, bias=False)
    layer = LoRALinear(base, r=4)
    layer.linear.freeze()
    x = mx.random.normal((8, 2048))
    mx.eval(layer.parameters(), x)

    def step() -> Any:
        def loss(parameters: Any) -> mx.array:
            layer.update(parameters)
            return mx.square(layer(x)).sum()

        return mx.grad(loss)(layer.trainable_parameters())

    assert extra_memory(step) < base.weight.nbytes / 4
