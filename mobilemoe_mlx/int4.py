"""The published INT4 format: pack, unpack, quantise, fake-quantise, and the exact MLX form.

Symmetric INT4 in groups of 32 along the last axis: value = code x scale, code in -8..7, float16
scale, two codes per byte, low nibble first, two's complement (config.json `quantization`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.config import GROUP_SIZE, SCALE_RULES, ScaleRule
from mobilemoe_mlx.errors import UserError

QMIN, QMAX = -8, 7  # config.json quantization.qmin, qmax


class Packed(NamedTuple):
    """One tensor in the published form."""

    qweight: mx.array  # uint8 [..., columns / 2]
    scale: mx.array  # float16 [..., columns / 32]


# MLX's affine form: code' x scale + bias, where code' = code + 8 and bias = -8 x scale.


def affine_codes(qweight: mx.array) -> mx.array:
    """Codes as MLX's quantised kernels take them: uint8 [..., columns / 2], two's complement, to
    uint32 [..., columns / 8], the codes + 8."""
    # Adding 8 to a two's-complement nibble is flipping its top bit.
    return (qweight ^ mx.array(0x88, mx.uint8)).view(mx.uint32)


def affine_biases(scale: mx.array) -> mx.array:
    """-8 x `scale`, same shape and dtype; exact in float16 for what `check_scales` accepts."""
    return scale * mx.array(QMIN, scale.dtype)


# What `tensor_names.mlx_parts` says to make of a published tensor -> the function that makes it.
AFFINE_PARTS: dict[str, Callable[[mx.array], mx.array]] = {
    "same": lambda tensor: tensor,
    "codes": affine_codes,
    "biases": affine_biases,
}


def affine(weight: mx.array, rule: ScaleRule = "unclipped") -> tuple[mx.array, mx.array, mx.array]:
    """`weight` rounded by `quantize`, in MLX's form: uint32 weight, float16 scales and biases."""
    codes, scale = quantize(weight, rule)
    return affine_codes(pack(codes)), scale, affine_biases(scale)


def from_affine(weight: mx.array, scales: mx.array) -> Packed:
    """MLX's affine form (uint32 weight, float16 scales) back to the published form, bit for bit."""
    return Packed(weight.view(mx.uint8) ^ mx.array(0x88, mx.uint8), scales)


def pack(codes: mx.array) -> mx.array:
    """int8 codes [..., columns] in -8..7 to uint8 [..., columns / 2], low nibble first."""
    nibbles = codes.astype(mx.uint8) & mx.array(0x0F, mx.uint8)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << mx.array(4, mx.uint8))


def unpack(qweight: mx.array) -> mx.array:
    """uint8 [..., columns / 2] to int8 codes [..., columns] in -8..7."""
    low = qweight & mx.array(0x0F, mx.uint8)
    high = qweight >> mx.array(4, mx.uint8)
    nibbles = mx.stack([low, high], axis=-1).flatten(-2).astype(mx.int8)
    return mx.where(nibbles > QMAX, nibbles - 16, nibbles)


def quantize(weight: mx.array, rule: ScaleRule = "unclipped") -> tuple[mx.array, mx.array]:
    """Round to nearest: float [..., columns] to (int8 codes [..., columns], float16 scales).

    The scale, rounded to float16, is by the rule "unclipped" max(max / 7, min / -8) of the group:
    for scales in float16's normal range (above 6e-5) nothing is clipped, and quantising a
    dequantised tensor returns the same codes and scales. By the rule "paper" (arXiv 2605.27358) it
    is max |value| / 7.5, and codes beyond -8..7 are clamped.
    """
    groups = _grouped(weight)
    if rule == "paper":
        scale = (mx.abs(groups).max(axis=-1) / 7.5).astype(mx.float16)
    else:
        scale = mx.maximum(groups.max(axis=-1) / QMAX, groups.min(axis=-1) / QMIN)
        scale = scale.astype(mx.float16)
    step = scale.astype(mx.float32)[..., None]
    # A group of zeros (or of values below float16's smallest number) has scale 0 and codes 0.
    codes = mx.round(groups / mx.where(step > 0, step, 1.0))
    codes = mx.where(step > 0, mx.clip(codes, QMIN, QMAX), 0.0)
    return codes.astype(mx.int8).reshape(weight.shape), scale


def dequantize(codes: mx.array, scale: mx.array) -> mx.array:
    """int8 codes [..., columns] and float16 scales [..., columns / 32] to exact float32 values."""
    groups = _grouped(codes) * scale.astype(mx.float32)[..., None]
    return groups.reshape(codes.shape)


def fake_quantize(weight: mx.array, rule: ScaleRule = "unclipped") -> mx.array:
    """`weight` [..., columns] as its INT4 form will compute it, float32; gradients pass straight.

    Exactly `dequantize(*quantize(weight, rule))`: the backward pass is the identity
    (straight-through estimator), declared as such so that the forward value carries no rounding of
    its own.
    """
    return _FAKE_QUANTIZE[rule](weight)


def _straight_through(rule: ScaleRule) -> Callable[[mx.array], mx.array]:
    @mx.custom_function
    def forward(weight: mx.array) -> mx.array:
        return dequantize(*quantize(weight, rule))

    @forward.vjp
    def backward(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent

    return forward


_FAKE_QUANTIZE = {rule: _straight_through(rule) for rule in SCALE_RULES}


def check_scales(name: str, scale: mx.array) -> None:
    """Raise UserError unless every float16 scale of tensor `name` is finite and at most 65504 / 8.

    Compares bits, in numpy: without their sign float16 are ordered as their bits are, infinity and
    NaN last, and a model has tens of millions of them.
    """
    bits = np.asarray(scale.view(mx.uint16)) & 0x7FFF
    most = np.float16(65504 / -QMIN).view(np.uint16)
    if bits.size and bits.max() > most:
        bad = int((bits > most).sum())
        raise UserError(f"{name}: {bad} of {scale.size} scales are NaN, infinite or above 8188.")


def _grouped(x: mx.array) -> mx.array:
    if x.shape[-1] % GROUP_SIZE:
        raise ValueError(f"the last axis ({x.shape[-1]}) is not a multiple of {GROUP_SIZE}")
    return x.astype(mx.float32).reshape(*x.shape[:-1], x.shape[-1] // GROUP_SIZE, GROUP_SIZE)
