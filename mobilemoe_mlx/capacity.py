"""A limit on how many tokens of a row an expert takes, as in training that drops and pads."""

from __future__ import annotations

import math
from fractions import Fraction

import mlx.core as mx


def places(tokens: int, slots: int, num_experts: int, factor: float) -> int:
    """Tokens of a row that an expert takes: ceil(factor x tokens x slots / num_experts), >= 1.

    At most `tokens` x `slots`, which are all choices. `factor` is the decimal that was written: in
    floating point 1.1 x 1,500 x 4 / 60 is a little above 110, which would be 111 places.
    """
    share = Fraction(tokens * slots, num_experts)
    return min(math.ceil(Fraction(str(factor)) * share), tokens * slots)


def within_capacity(experts: mx.array, num_experts: int, factor: float) -> mx.array:
    """Which of the chosen experts have room: bool, shaped as `experts` [rows, tokens, slots].

    Of each row an expert takes the first `places` tokens that chose it: `factor` times its share,
    were all used alike. So no token's place depends on a later one, nor on how a batch is divided,
    and padding, which ends a row, takes none.
    """
    rows, tokens, slots = experts.shape
    room = places(tokens, slots, num_experts, factor)
    choices = experts.reshape(rows, -1, 1)
    is_chosen = (choices == mx.arange(num_experts, dtype=experts.dtype)).astype(mx.int32)
    earlier = mx.cumsum(is_chosen, axis=1, inclusive=False)
    return mx.take_along_axis(earlier, choices, axis=-1).reshape(experts.shape) < room
