"""Products of rows with the matrix of their expert, on every device."""

from __future__ import annotations

import mlx.core as mx


def gather_mm(x: mx.array, weight: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
    """x [..., rows, in] @ weight[indices], of weight [experts, in, out] -> [..., rows, out].

    `indices` [...]; `sorted_indices`: whether they ascend. The result has x's type.
    """
    dtype = x.dtype
    if mx.default_device().type == mx.DeviceType.cpu:
        # The CPU's gather_mm takes float32 only; widening bfloat16 and float16 is exact.
        x, weight = x.astype(mx.float32), weight.astype(mx.float32)
    y = mx.gather_mm(x, weight, rhs_indices=indices, sorted_indices=sorted_indices)
    return y.astype(dtype)
