"""Experts rounded a second time, along *in*: in numpy, and as layers of an MLX model."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.export.int4_source import to_numpy
from mobilemoe_mlx.model import Model


def round_along_in(codes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Published experts, codes uint8 [E, in, out / 2] and scales float16 [E, in, out / 32] -> codes
    uint8 [E, out, in / 2], two's complement, and scales float16 [E, out, in / 32].

    The scale is the least by which nothing of its group is clipped (config.json qmin and qmax).
    """
    parts = [_round_one(*expert) for expert in zip(codes, scales, strict=True)]
    return np.stack([c for c, _ in parts]), np.stack([s for _, s in parts])


def _round_one(codes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nibbles = np.stack([codes & 0x0F, codes >> 4], axis=-1).reshape(len(codes), -1)
    values = ((nibbles.astype(np.int8) ^ 8) - 8).astype(np.float32)
    values *= np.repeat(scales.astype(np.float32), 32, axis=1)
    groups = np.ascontiguousarray(values.T).reshape(values.shape[1], -1, 32)
    rounded = np.maximum(groups.max(-1) / np.float32(7), groups.min(-1) / np.float32(-8))
    step = rounded.astype(np.float16)
    wide = step.astype(np.float32)[..., None]
    quotients = np.divide(groups, wide, out=np.zeros_like(groups), where=wide > 0)
    whole = np.clip(np.round(quotients), -8, 7).astype(np.int8).reshape(values.shape[::-1])
    pairs = whole.view(np.uint8) & 0x0F
    return pairs[:, 0::2] | pairs[:, 1::2] << 4, step


class RequantizedLinear(nn.Module):
    """One linear layer of every expert, its groups along *in*; the interface of `ExpertLinear`."""

    def __init__(self, codes: np.ndarray, scales: np.ndarray) -> None:
        super().__init__()
        self._weight = mx.array(codes ^ 0x88).view(mx.uint32)
        self._scales = mx.array(scales).astype(mx.float32)
        self._biases = -8 * self._scales

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x [..., rows, in] times the expert of each `indices` [...] -> [..., rows, out]."""
        return mx.gather_qmm(
            x,
            self._weight,
            self._scales,
            self._biases,
            rhs_indices=indices,
            transpose=True,
            group_size=32,
            bits=4,
            sorted_indices=sorted_indices,
        )


def with_requantized_experts(model: Model, checkpoint: Checkpoint) -> Model:
    """`model`, of the INT4 `checkpoint`, with every routed expert rounded a second time."""
    for index, layer in enumerate(model.layers):
        for stem in ("gate_up", "down"):
            at = f"model.layers.{index}.feed_forward.experts.{stem}"
            codes, scales = (
                to_numpy(checkpoint.tensors[f"{at}_{kind}"]) for kind in ("qweight", "scale")
            )
            linear = RequantizedLinear(*round_along_in(codes, scales))
            setattr(layer.feed_forward.experts, f"{stem}_proj", linear)
    return model
