"""Routed experts rounded a second time, in groups along *in*, as `QMoE` takes them."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mobilemoe_mlx import int4

# Experts that are unpacked at once: of L 8 are 52 MB in float32.
_AT_ONCE = 8


@dataclass(frozen=True)
class Requantized:
    """One matrix of all experts."""

    codes: np.ndarray  # uint8 [E, out, in / 2], two's complement
    scales: np.ndarray  # float16 [E, out, in / 32]
    error: float  # of all values: the difference's root mean square over the values' own


def requantize(codes: np.ndarray, scales: np.ndarray) -> Requantized:
    """Published experts, codes uint8 [E, in, out / 2] and scales float16 [E, in, out / 32], rounded
    to nearest in groups along *in*."""
    new_codes, new_scales = [], []
    squares = difference = 0.0
    for start in range(0, len(codes), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        values = int4.dequantize(int4.unpack(mx.array(codes[part])), mx.array(scales[part]))
        values = mx.contiguous(values.transpose(0, 2, 1))  # [experts, out, in]
        rounded, scale = int4.quantize(values)
        error = int4.dequantize(rounded, scale) - values
        new_codes.append(np.array(int4.pack(rounded)))
        new_scales.append(np.array(scale))
        difference += mx.square(error).sum().item()
        squares += mx.square(values).sum().item()
    error = (difference / squares) ** 0.5 if squares else 0.0
    return Requantized(np.concatenate(new_codes), np.concatenate(new_scales), error)
