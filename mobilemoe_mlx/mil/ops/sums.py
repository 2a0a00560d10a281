"""Ops that add up: products, attention, reductions; and the dequantised constants.

Sums are in float32 whatever the type, with one rounding at the end; int32 sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.mil.ops.base import (
    FLOAT,
    FLOAT_INT32,
    Array,
    Operator,
    axis_of,
    elementwise,
    narrow,
    numbers,
    operation,
    require,
    scalar,
    single,
    tensor,
)

Axes = tuple[int, ...] | None

_WEIGHT_ELEMENTS = 1 << 22  # elements that are float32 at a time, beside the float16 they come from


@operation(
    x=tensor("T"),
    weight=tensor("T", const=True),
    bias=tensor("T", const=True),
    domains={"T": FLOAT},
)
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x @ weight.T + bias. Documented for int32 and mixed types too, which are refused."""
    if weight.ndim != 2 or not 1 <= x.ndim <= 3 or x.shape[-1] != weight.shape[1]:
        raise UserError(f"it multiplies {list(x.shape)} by a weight {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"its bias is {list(bias.shape)}, its weight {list(weight.shape)}")
    rows = single(x).reshape(-1, x.shape[-1])
    out = np.empty((rows.shape[0], weight.shape[0]), np.float32)
    step = max(1, _WEIGHT_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        np.matmul(rows, single(weight[part]).T, out=out[:, part])
    if bias is not None:
        out += single(bias)
    return out.astype(x.dtype, copy=False).reshape(*x.shape[:-1], weight.shape[0])


@operation(
    x=tensor("T"),
    y=tensor("T"),
    transpose_x=scalar("bool"),
    transpose_y=scalar("bool"),
    domains={"T": FLOAT},
)
def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    """Documented for int32 and for mixed types with a constant too, which are refused.

    A vector is not transposed: as x it is a row, as y a column.
    """
    if transpose_x and x.ndim > 1:
        x = x.swapaxes(-1, -2)
    if transpose_y and y.ndim > 1:
        y = y.swapaxes(-1, -2)
    return _product(x, y)


def _product(x: Array, y: Array) -> Array:
    """x @ y in float32, rounded to their type; large batches one by one, to hold few copies."""
    if x.dtype == np.float32 or x.size + y.size <= _WEIGHT_ELEMENTS or max(x.ndim, y.ndim) < 3:
        return np.asarray(np.matmul(_for_blas(single(x)), _for_blas(single(y)))).astype(
            x.dtype, copy=False
        )
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = (np.broadcast_to(v, (*batch, *v.shape[-2:])) if v.ndim > 1 else v for v in (x, y))
    pieces = [
        _product(x[i] if x.ndim > 2 else x, y[i] if y.ndim > 2 else y) for i in range(batch[0])
    ]
    return np.stack(pieces)


def _for_blas(x: Array) -> Array:
    """x, copied if neither of its last two axes is contiguous, which numpy multiplies slowly."""
    return x if x.itemsize in x.strides[-2:] else np.ascontiguousarray(x)


@operation(
    query=tensor("T"),
    key=tensor("T"),
    value=tensor("T"),
    attn_mask=tensor("M"),
    domains={"T": FLOAT, "M": ("bool", *FLOAT)},
)
def scaled_dot_product_attention(
    query: Array, key: Array, value: Array, attn_mask: Array | None = None
) -> Array:
    """softmax(query @ key.T / sqrt(E) + mask) @ value; a bool mask is True where a key counts."""
    if not 3 <= query.ndim == key.ndim == value.ndim:
        raise UserError(f"its ranks are {query.ndim}, {key.ndim} and {value.ndim}")
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise UserError("its query, key and value have different batches")
    scores = np.matmul(_for_blas(single(query)), _for_blas(single(key)).swapaxes(-1, -2))
    scores *= np.float32(1 / np.sqrt(query.shape[-1]))
    if attn_mask is not None:
        same_keys = attn_mask.shape[-1:] == scores.shape[-1:]  # these are not broadcast
        if not same_keys or np.broadcast_shapes(attn_mask.shape, scores.shape) != scores.shape:
            raise UserError(f"its mask is {list(attn_mask.shape)} for {list(scores.shape)}")
        if attn_mask.dtype == np.bool_:
            scores = np.where(attn_mask, scores, np.float32(-np.inf))
        elif attn_mask.dtype == query.dtype:
            scores += single(attn_mask)
        else:
            raise UserError(f"its mask is {attn_mask.dtype}, its query {query.dtype}")
    return np.matmul(_softmax(scores), _for_blas(single(value))).astype(query.dtype, copy=False)


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    powers /= powers.sum(-1, keepdims=True)
    return powers


def _reduction(
    name: str, function: Callable[..., Any], domain: tuple[str, ...] = FLOAT_INT32
) -> Operator:
    def reduce(x: Array, axes: Axes = None, keep_dims: bool = False) -> Array:
        over = None if axes is None else tuple(axis_of(axis, x.ndim) for axis in axes)
        is_float = np.issubdtype(x.dtype, np.floating)
        wide = single(x) if is_float else x.astype(np.int64)
        result = np.asarray(function(wide, over, keep_dims))
        return result.astype(x.dtype, copy=False) if is_float else narrow(result, x.dtype)

    reduce.__name__ = name
    return operation(
        x=tensor("T"), axes=numbers("int32"), keep_dims=scalar("bool"), domains={"T": domain}
    )(reduce)


reduce_sum = _reduction("reduce_sum", lambda x, axes, keep: x.sum(axes, keepdims=keep))
# Core ML documents int32 too, but does not say what the mean of 1 and 2 is as int32.
reduce_mean = _reduction("reduce_mean", lambda x, axes, keep: x.mean(axes, keepdims=keep), FLOAT)


@operation(
    x=tensor("T"),
    axis=scalar("int32"),
    exclusive=scalar("bool"),
    reverse=scalar("bool"),
    domains={"T": FLOAT_INT32},
)
def cumsum(x: Array, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Array:
    require("exclusive", exclusive, False)
    require("reverse", reverse, False)
    axis = axis_of(axis, x.ndim)
    is_float = np.issubdtype(x.dtype, np.floating)
    sums = np.cumsum(x, axis, dtype=np.float32 if is_float else np.int64)
    return sums.astype(x.dtype, copy=False) if is_float else narrow(sums, x.dtype)


@operation(
    "D",
    data=tensor("S", const=True),
    scale=tensor("D", const=True),
    domains={"S": ("int4", "uint4", "int8", "uint8", *FLOAT), "D": FLOAT},
)
def constexpr_blockwise_shift_scale(data: Array, scale: Array) -> Array:
    """scale x data; a scale holds for a block of data's elements on every axis."""
    if data.ndim != scale.ndim or any(n % m for n, m in zip(data.shape, scale.shape, strict=True)):
        raise UserError(f"its scales {list(scale.shape)} do not divide data {list(data.shape)}")
    blocks: list[int] = []
    singles: list[int] = []
    for n, m in zip(data.shape, scale.shape, strict=True):
        blocks += [m, n // m]
        singles += [m, 1]
    out = elementwise(np.multiply, data.reshape(blocks), scale.reshape(singles), dtype=scale.dtype)
    return out.reshape(data.shape)
