"""What splitting and sharing experts is worth: what is published, and what is assumed beside it.

The paper's coefficients for each granularity were not to be found. Published is that g = 16 takes
about half as much time again as g = 8 for less than 0.01 of loss; and that a shared expert lowers
the loss, of which fit only one coefficient was to be found.
"""

from __future__ import annotations

import math

REFERENCE = 8  # the granularity that the law's losses are taken to be at

# Nats per token that a doubling of g takes away. For 8 to 16 it is the most that the paper allows;
# for the doublings before, whose returns are larger if returns diminish, it is a cautious guess.
GAIN_PER_DOUBLING = 0.01

# Nats per token more without a shared expert. By how much it helps could not be found: this is an
# eighth of the law's own error, so that it decides between shapes that are alike but for it.
WITHOUT_SHARED = 0.001

# Time of a token over that at the same FLOPs with g = 8. Below 16 the paper names no price.
RELATIVE_TIME = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.5}


def loss_against_reference(granularity: int) -> float:
    """Nats per token more than at g = 8 (fewer: negative)."""
    return GAIN_PER_DOUBLING * math.log2(REFERENCE / granularity)
