"""Which choices have room where an expert takes a limited number of tokens."""

from __future__ import annotations

import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from small_model import small_args

from mobilemoe_mlx.capacity import within_capacity
from mobilemoe_mlx.model import MixtureOfExperts


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.5, 3.0])
def test_the_first_of_each_row_have_room(factor: float):
    rng = np.random.default_rng(0)
    rows, tokens, slots, experts = 3, 11, 2, 5
    # Unevenly, and no expert twice for a token.
    chosen = np.stack([rng.permutation(experts)[:slots] for _ in range(rows * tokens)])
    chosen[::2] = [0, 3]
    chosen = chosen.reshape(rows, tokens, slots)
    fits = np.array(within_capacity(mx.array(chosen.astype(np.uint32)), experts, factor))
    room = math.ceil(factor * tokens * slots / experts)
    for row in range(rows):
        taken = Counter[int]()
        for token in range(tokens):
            for slot in range(slots):
                expert = chosen[row, token, slot]
                assert fits[row, token, slot] == (taken[expert] < room)
                taken[expert] += 1


def test_a_choice_without_room_adds_nothing():
    layer = MixtureOfExperts(small_args())
    layer.expert_bias = mx.array([1.0] * 4 + [0.0] * 8)  # all tokens choose the first four of 12
    x = mx.random.normal((2, 6, 64))
    dropless, routing = layer(x)
    layer.capacity_factor = 1.0  # room for two tokens of a row
    limited, same = layer(x)
    assert mx.array_equal(routing.experts, same.experts)
    assert mx.array_equal(routing.weights, same.weights)
    assert mx.allclose(limited[:, :2], dropless[:, :2], atol=1e-6)
    assert mx.allclose(limited[:, 2:], layer.shared_expert(x)[:, 2:], atol=1e-6)
    assert not mx.allclose(dropless[:, 2:], limited[:, 2:], atol=1e-4)
    layer.eval()
    assert mx.array_equal(layer(x)[0], dropless)
