"""Which parts to keep in BF16 under a byte budget, by what rounding each of them costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.sensitivity.parts import Part


class Choice(NamedTuple):
    """Parts that are rounded to INT4; all others stay BF16."""

    rounded: tuple[Part, ...]
    nbytes: int  # of all parts together
    cost: float  # the sum of the costs of those that are rounded


def cheapest(parts: Sequence[Part], costs: Mapping[str, float], budget: int) -> Choice | None:
    """The choice of the lowest summed cost whose parts take at most `budget` bytes; exact.

    `costs`: of rounding each part, by `Part.parameter`, taken to add up. None where even INT4 takes
    more. Part by part, the states are kept that no other beats in both bytes and cost (Nemhauser
    and Ullmann 1969); sizes are multiples of some thousands of bytes, so they stay few.
    """
    nbytes, sums = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # of each state: that before it, and rounds
    least = sum(part.int4_bytes for part in parts)
    if least > budget:
        return None
    for part in parts:
        least -= part.int4_bytes  # what the parts to come take at least
        count = len(nbytes)
        grown = np.concatenate([nbytes + part.bf16_bytes, nbytes + part.int4_bytes])
        grown_sums = np.concatenate([sums, sums + costs[part.parameter]])
        order = np.lexsort((grown_sums, grown))
        order = order[grown[order] + least <= budget]
        # Those that cost less than all that take no more.
        before = np.minimum.accumulate(np.concatenate([[np.inf], grown_sums[order][:-1]]))
        kept = order[grown_sums[order] < before]
        nbytes, sums = grown[kept], grown_sums[kept]
        steps.append((kept % count, kept >= count))
    state = best = int(sums.argmin())
    rounded: list[Part] = []
    for part, (parents, rounds) in zip(reversed(parts), reversed(steps), strict=True):
        if rounds[state]:
            rounded.append(part)
        state = int(parents[state])
    return Choice(tuple(reversed(rounded)), int(nbytes[best]), float(sums[best]))
