"""Ops that move elements without computing: shapes, slices, gathers, concatenation."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.mil.ops.base import (
    ANY,
    FLOAT_INT32,
    INTEGER,
    SIGNED,
    Array,
    axis_of,
    numbers,
    operation,
    require,
    scalar,
    tensor,
    tensors,
)

_FOUR = (*FLOAT_INT32, "bool")  # the types of ops that iOS 17 did not widen
_NUMBERS = (*FLOAT_INT32, "int8", "uint8", "int16", "uint16")

_SLICE_INPUTS: dict[str, Any] = {
    "begin": numbers("U", const=False),
    "end": numbers("U", const=False),
    "stride": numbers("U"),
    "begin_mask": numbers("bool"),
    "end_mask": numbers("bool"),
    "squeeze_mask": numbers("bool"),
}

Ints = tuple[int, ...]
Mask = tuple[bool, ...] | None


@operation(x=tensor("T"), shape=numbers("U", const=False), domains={"T": ANY, "U": SIGNED})
def reshape(x: Array, shape: Ints) -> Array:
    """A 0 is the size of x at the same place counted from the right (1 beyond it), -1 the rest."""
    offset = x.ndim - len(shape)
    sizes = [
        n if n != 0 else x.shape[i + offset] if i + offset >= 0 else 1 for i, n in enumerate(shape)
    ]
    if any(n < -1 for n in sizes) or sizes.count(-1) > 1:
        raise UserError(f"its shape is {list(shape)}")
    return x.reshape(sizes)


@operation(x=tensor("T"), perm=numbers("int32"), domains={"T": ANY})
def transpose(x: Array, perm: Ints) -> Array:
    axes = [axis_of(axis, x.ndim) for axis in perm]
    return x.transpose(axes)


@operation(x=tensor("T"), axes=numbers("int32"), domains={"T": ANY})
def expand_dims(x: Array, axes: Ints) -> Array:
    return np.expand_dims(x, axes)


@operation(x=tensor("T"), reps=numbers("int32", const=False), domains={"T": _FOUR})
def tile(x: Array, reps: Ints) -> Array:
    if len(reps) != x.ndim or min(reps, default=1) < 1:
        raise UserError(f"it repeats a tensor of rank {x.ndim} {list(reps)} times")
    return np.tile(x, reps)


@operation(
    values=tensors("T"), axis=scalar("int32"), interleave=scalar("bool"), domains={"T": _FOUR}
)
def concat(values: tuple[Array, ...], axis: int, interleave: bool = False) -> Array:
    """Scalars count as tensors of one element."""
    require("interleave", interleave, False)
    return np.concatenate([np.atleast_1d(value) for value in values], axis)


@operation(values=tensors("T"), axis=scalar("int32"), domains={"T": _FOUR})
def stack(values: tuple[Array, ...], axis: int) -> Array:
    return np.stack(values, axis)


@operation(
    x=tensor("T"),
    axis=scalar("int32"),
    num_splits=scalar("int32"),
    split_sizes=numbers("int32"),
    domains={"T": _FOUR},
)
def split(
    x: Array, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Array, ...]:
    """Given both, the sizes must be as many as the number of splits."""
    axis = axis_of(axis, x.ndim)
    length = x.shape[axis]
    if split_sizes is None:
        if not num_splits or length % num_splits:
            raise UserError(f"it splits {length} into {num_splits} equal parts")
        split_sizes = (length // num_splits,) * num_splits
    if (
        sum(split_sizes) != length
        or min(split_sizes) < 0
        or num_splits not in (None, len(split_sizes))
    ):
        raise UserError(f"it splits {length} into {num_splits} parts of sizes {list(split_sizes)}")
    return tuple(np.split(x, np.cumsum(split_sizes)[:-1], axis))


def _slices(
    shape: Ints,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Mask,
    end_mask: Mask,
    squeeze_mask: Mask,
) -> tuple[Any, ...]:
    """The numpy index of a slice; unlike numpy's it must not reach beyond the tensor.

    Negative strides are refused: for them the documentation does not say what a mask means.
    """
    rank = len(shape)
    stride = (1,) * rank if stride is None else stride
    masks = [(False,) * rank if m is None else m for m in (begin_mask, end_mask, squeeze_mask)]
    if any(len(values) != rank for values in (begin, end, stride, *masks)):
        raise UserError(f"it slices a tensor of rank {rank} by lists of other lengths")
    index: list[Any] = []
    for i, n in enumerate(shape):
        from_start, to_end, single = (mask[i] for mask in masks)
        start, stop = 0 if from_start else begin[i], n if to_end else end[i]
        if stride[i] < 1 or not -n <= start < n or not (single or -n <= stop <= n):
            raise UserError(f"its slice {start}:{stop}:{stride[i]} of axis {i} reaches beyond {n}")
        index.append(start if single else slice(start, stop, stride[i]))
    return tuple(index)


@operation(x=tensor("T"), domains={"T": ANY, "U": SIGNED}, **_SLICE_INPUTS)
def slice_by_index(
    x: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Mask = None,
    end_mask: Mask = None,
    squeeze_mask: Mask = None,
) -> Array:
    index = _slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return np.asarray(x[index])


@operation(x=tensor("T"), update=tensor("T"), domains={"T": ANY, "U": SIGNED}, **_SLICE_INPUTS)
def slice_update(
    x: Array,
    update: Array,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Mask = None,
    end_mask: Mask = None,
    squeeze_mask: Mask = None,
) -> Array:
    index = _slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if update.ndim == 0 or x[index].shape != update.shape:
        raise UserError(f"its update is {list(update.shape)}, its slice {list(x[index].shape)}")
    out = x.copy()
    out[index] = update
    return out


@operation(
    x=tensor("T"),
    indices=tensor("I"),
    axis=scalar("int32"),
    batch_dims=scalar("int32"),
    validate_indices=scalar("bool"),
    domains={"T": _NUMBERS, "I": INTEGER},
)
def gather(
    x: Array, indices: Array, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Array:
    """Checks its indices whether told so or not: what Core ML gives for others is undefined.

    No index may be negative.
    """
    require("batch_dims", batch_dims, 0)
    axis = axis_of(axis, x.ndim)
    length = x.shape[axis]
    if indices.size and (indices.min() < 0 or indices.max() >= length):
        raise UserError(
            f"its indices reach from {indices.min()} to {indices.max()}, of {length} elements"
        )
    return np.asarray(np.take(x, indices.astype(np.intp), axis))
