"""Which choices have room where an expert takes a limited number of tokens."""

from __future__ import annotations

import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from small_model import small_args

from mobilemoe_mlx.capacity import places, within_capacity
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


def test_places_are_of_the_factor_as_it_is_written():
    # In float64 1.1 x 1,500 x 4 / 60 is above 110, and 5e-324 x 4 / 60 is 0.
    cases = {1.5: 150, 1.1: 110, 2.2: 220, 1e-9: 1, 5e-324: 1, 1e18: 6000, 1e308: 6000}
    for factor, wanted in cases.items():
        assert places(1500, 4, 60, factor) == wanted
    assert places(1, 1, 1, 0.5) == 1
    # More places than int32 counts, and than float64.
    chosen = mx.zeros((1, 3, 1), mx.uint32)
    for factor in (9e9, 1e308):
        assert within_capacity(chosen, 2, factor).all()


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
