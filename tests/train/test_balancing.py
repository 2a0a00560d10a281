"""The balancing rule, and that it evens out a skewed router."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from training_fixtures import bare_recipe

from mobilemoe_mlx.model import Router
from mobilemoe_mlx.train.balancing import expert_counts, load_statistics, updated_biases


def test_counts_are_numpys_without_the_padding():
    rng = np.random.default_rng(0)
    experts = rng.integers(0, 9, (50, 3)).astype(np.uint32)
    real = rng.random(50) < 0.7
    counts = expert_counts(mx.array(experts), mx.array(real), 10)
    assert counts.tolist() == np.bincount(experts[real].flatten(), minlength=10).tolist()
    assert counts.dtype == mx.float32


def test_biases_move_by_the_rate_toward_the_under_used():
    biases = mx.array([[0.5, 0.0, -0.5, 0.25], [0.0, 0.0, 0.0, 0.0]])
    counts = mx.array([[4.0, 2.0, 0.0, 2.0], [1.0, 1.0, 1.0, 1.0]])  # means 2 and 1
    moved = np.array(updated_biases(biases, counts, 1e-3)) - np.array(biases)
    np.testing.assert_allclose(moved[0], [-1e-3, 0, 1e-3, 0], atol=1e-7)
    assert not moved[1].any()
    assert updated_biases(biases, counts, 0.0).tolist() == biases.tolist()


def test_statistics_of_a_load():
    counts = mx.array([[2.0, 2.0, 2.0, 2.0], [8.0, 0.0, 0.0, 0.0], [4.0, 4.0, 0.0, 0.0]])
    statistics = load_statistics(counts)
    assert statistics["load_entropy"] == pytest.approx([1, 0, 0.5], abs=1e-6)
    assert statistics["max_load"] == pytest.approx([1, 4, 2])
    assert statistics["dead_experts"] == [0, 3, 2]
    assert all(math.isfinite(x) for x in load_statistics(mx.zeros((1, 4)))["load_entropy"])
    assert load_statistics(mx.array([[5.0]]))["load_entropy"] == [1]  # one expert, always even


def test_a_skewed_router_is_evened_out(tmp_path):
    args = bare_recipe(tmp_path).model
    mx.random.seed(0)
    router = Router(args)
    # A direction that all tokens share makes them all prefer the same experts.
    x = 0.3 * mx.random.normal((512, args.hidden_size)) + mx.random.normal((args.hidden_size,))
    real = mx.ones((512,), mx.bool_)
    biases = mx.zeros((1, args.num_local_experts))
    history = []
    for _ in range(400):
        counts = expert_counts(router(x, biases[0]).experts, real, args.num_local_experts)[None]
        biases = updated_biases(biases, counts, 2e-3)
        history.append(load_statistics(counts))
    first, last = history[0], history[-1]
    assert first["dead_experts"][0] >= 2 and first["load_entropy"][0] < 0.8
    assert last["dead_experts"][0] == 0 and last["load_entropy"][0] > 0.97
    assert last["max_load"][0] < 1.5 < first["max_load"][0]
