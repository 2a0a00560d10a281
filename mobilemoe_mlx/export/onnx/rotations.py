"""Rotations of every position as tables, so that no runtime computes a large angle in float32."""

from __future__ import annotations

import numpy as np

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.model import rope_periods


def rotations(args: ModelArgs, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of position / period, float32 [context, head_dim / 2] each.

    Angles are taken in float64 from the model's float32 periods.
    """
    angles = np.arange(context)[:, None] / rope_periods(args).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
