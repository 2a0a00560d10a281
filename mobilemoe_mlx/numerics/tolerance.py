"""How far two programs may be apart, and where the numbers come from."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple


class Limit(NamedTuple):
    """The measure of the logits that is judged, and its largest accepted value."""

    measure: str  # "max" or "mean" of `TensorError`
    value: float


# The arithmetics that a saved export is evaluated in: float32 throughout, or its declared types.
# "int8": declared types of which some are activations rounded to int8.
Arithmetic = Literal["declared", "float32", "int8"]

# Two programs that compute in float32 and add the same products in other orders: the project's
# promise, for PyTorch's model as for a package's program.
FLOAT32_LIMIT = 1e-4

# The error of a router's score, between 0 and 1 without its bias, up to which two are a near tie:
# measured 4e-7. (Scores as such are held to FLOAT32_LIMIT: logits in the hundreds cost digits.)
FLOAT32_SCORE = 1e-5

# Root mean square of the relative error of one rounding to float16: half a unit in the last place
# is 2^-11 at most, the error is uniform below that (1 / sqrt 3), and averaged over mantissas from 1
# to 2 the unit is 0.72 of its largest size.
FLOAT16_ROUNDING = 2**-11 / math.sqrt(3) * 0.72

# Roundings to float16 between a layer's input and what it adds to the residual stream, which is
# float32 itself. Attention: input, weights, qkv, q and k after their norm, product with the values,
# weights, output. Experts: input, weights, gate and up, silu, product, weights, output.
ROUNDINGS_PER_LAYER = 14
ROUNDINGS_OUTSIDE = 4  # embedding row; head: input, weights, logits

# The same of activations rounded to int8 by the largest of their row: the step is a 127th of it,
# the error uniform, its root mean square the step over the root of 12, and the largest of hundreds
# of normal values is about 3.2 times their root mean square.
INT8_ROUNDING = 3.2 / 127 / math.sqrt(12)

# Inputs of qkv, of attention's output, of gate and up, and of down; and the head's.
INT8_ROUNDINGS_PER_LAYER = 4
INT8_ROUNDINGS_OUTSIDE = 1

# Layers may magnify what reaches them, and near ties in the routing fall differently.
SAFETY = 4


# Where greedy texts part, the gap between the two tokens in MLX's logits is at most this times the
# limit: both tokens err, and hardly an error is beyond 5 times the mean (of normal ones 1 in
# 15,000). A limit of the largest error is relative to the largest logit, about 5 times their RMS.
GREEDY_GAP = 2 * 5

# MLX against PyTorch, by the coarser of the two types. In half precision near ties in the routing
# fall differently and move single tokens far, so there the mean is judged (docs/numerics.md has the
# measurements).
COMPARE_LIMITS = {
    "float32": Limit("max", FLOAT32_LIMIT),
    "float16": Limit("mean", 0.05),
    "bfloat16": Limit("mean", 0.15),
}


def limit(arithmetic: Arithmetic, layers: int) -> Limit:
    """The limit for logits computed in `arithmetic` by `layers` layers.

    declared, int8: independent roundings add up as the root of their number.
    """
    if arithmetic == "float32":
        return Limit("max", FLOAT32_LIMIT)
    if arithmetic == "int8":
        roundings = INT8_ROUNDINGS_PER_LAYER * layers + INT8_ROUNDINGS_OUTSIDE
        return Limit("mean", SAFETY * INT8_ROUNDING * math.sqrt(roundings))
    roundings = ROUNDINGS_PER_LAYER * layers + ROUNDINGS_OUTSIDE
    return Limit("mean", SAFETY * FLOAT16_ROUNDING * math.sqrt(roundings))
