"""A limit on how many tokens of a sequence an expert takes, as in training that drops and pads."""

from __future__ import annotations

import math

import mlx.core as mx


def within_capacity(experts: mx.array, num_experts: int, factor: float) -> mx.array:
    """Which of the chosen experts have room: bool, shaped as `experts` [rows, tokens, slots].

    Of each row an expert takes the first ceil(factor x tokens x slots / num_experts) tokens that
    chose it: `factor` times its share, were all used alike. Rows do not touch each other, so how a
    batch is divided changes nothing, and padding, which ends a row, takes no token's place.
    """
    rows, tokens, slots = experts.shape
    room = math.ceil(factor * tokens * slots / num_experts)
    choices = experts.reshape(rows, -1, 1)
    is_chosen = (choices == mx.arange(num_experts, dtype=experts.dtype)).astype(mx.int32)
    earlier = mx.cumsum(is_chosen, axis=1, inclusive=False)
    return mx.take_along_axis(earlier, choices, axis=-1).reshape(experts.shape) < room
