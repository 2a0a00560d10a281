"""The fused AdamW against MLX's own, step by step."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from mobilemoe_mlx.linux_cpu.adamw import AdamW


def test_the_same_steps_and_state_as_mlx_own():
    options = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "bias_correction": True}
    ours, theirs = (kind(learning_rate=1e-2, **options) for kind in (AdamW, optim.AdamW))
    mx.random.seed(0)
    found = expected = {"matrix": mx.random.normal((33, 20)), "vector": mx.random.normal((7,))}
    for step in range(5):
        gradients = {name: mx.random.normal(value.shape) for name, value in found.items()}
        for optimizer in (ours, theirs):
            optimizer.learning_rate = 1e-2 / (step + 1)
        found = ours.apply_gradients(gradients, found)
        expected = theirs.apply_gradients(gradients, expected)
        for name in found:
            np.testing.assert_allclose(np.array(found[name]), np.array(expected[name]), atol=1e-6)
            for moment in ("m", "v"):
                a, b = ours.state[name][moment], theirs.state[name][moment]
                np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-6, atol=1e-9)
    assert ours.state["step"].item() == theirs.state["step"].item() == 5
