"""What an export routed, where it does not show it: told by what its layers computed."""

from __future__ import annotations

import numpy as np

from mobilemoe_mlx.numerics.tolerance import FLOAT32_LIMIT, FLOAT32_SCORE
from mobilemoe_mlx.numerics.values import LayerValues, Trace


def infer_routing(measured: Trace, reference: Trace) -> Trace:
    """`measured` with the reference's scores, and with its experts but for near ties that fell
    differently.

    A token is taken for one of those where the reference's last chosen score and the next are
    within float32's rounding and the residual stream after the layer is another; its experts are
    then -1. Every other difference is left to be judged by what it does.
    """
    layers = []
    for mine, theirs in zip(measured.layers, reference.layers, strict=True):
        slots = theirs.experts.shape[-1]
        experts = theirs.experts.astype(np.int64)
        if slots < theirs.scores.shape[-1]:
            ranked = -np.sort(-theirs.scores, axis=-1)
            is_tie = ranked[:, slots - 1] - ranked[:, slots] <= 2 * FLOAT32_SCORE
            difference = np.abs(mine.hidden - theirs.hidden).max(axis=-1)
            differs = difference > FLOAT32_LIMIT * np.abs(theirs.hidden).max()
            experts[is_tie & differs] = -1
        layers.append(LayerValues(mine.hidden, theirs.scores, experts))
    return Trace(layers, measured.logits)
