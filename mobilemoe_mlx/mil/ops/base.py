"""What every op in numpy is made of: the declaration of its inputs, and float16 arithmetic.

A value's numpy type is its MIL type. Ops compute float16 in float32 and round the result once,
chunk by chunk, so that the float32 numbers stay in a core's cache: numpy's own float16 loops are
many times slower. In the evaluator's "float32" arithmetic values declared float16 are float32
arrays, so the same ops round nothing.
"""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mobilemoe_mlx.errors import UserError

Array = np.ndarray
Result = Array | tuple[Array, ...]

# Type domains of the iOS 18 opset, as coremltools' op definitions document them.
FLOAT = ("float16", "float32")
FLOAT_INT32 = (*FLOAT, "int32")
INTEGER = ("int8", "uint8", "int16", "uint16", "int32")
SIGNED = ("int8", "int16", "int32")
ANY = (*FLOAT, *INTEGER, "bool")

_CHUNK = 1 << 16  # elements: a few float32 arrays of this size fit a core's cache
_THREADS = ThreadPoolExecutor(os.cpu_count())


class Parameter(NamedTuple):
    """One input of an op."""

    kind: Literal["tensor", "tensors", "scalar", "list"]  # a list is a tensor of rank 1
    types: str  # a MIL type, or a letter of the op's `domains`
    const: bool = False
    required: bool = True


def tensor(types: str, const: bool = False) -> Parameter:
    """An input that arrives as an array."""
    return Parameter("tensor", types, const)


def tensors(types: str) -> Parameter:
    """A variadic input, which arrives as a tuple of arrays of one type."""
    return Parameter("tensors", types)


def scalar(types: str, const: bool = True) -> Parameter:
    """An input of rank 0, which arrives as a Python number, bool or str."""
    return Parameter("scalar", types, const)


def numbers(types: str, const: bool = True) -> Parameter:
    """An input of rank 1, which arrives as a tuple of Python numbers or bools."""
    return Parameter("list", types, const)


@dataclass(frozen=True)
class Operator:
    """An op: its inputs, their types and its arithmetic."""

    name: str
    parameters: Mapping[str, Parameter]
    domains: Mapping[str, tuple[str, ...]]  # letter -> the types it stands for, one at a time
    result: str | None  # a type or letter; None where an input's value decides
    takes_half: bool  # whether `compute` wants `half`, the numpy type that stands for float16
    compute: Callable[..., Result]


def operation(
    result: str | None = "T",
    domains: Mapping[str, tuple[str, ...]] | None = None,
    **inputs: Parameter,
) -> Callable[[Callable[..., Result]], Operator]:
    """Declare the function below as the op of its name; inputs with a default are optional."""

    def declare(function: Callable[..., Result]) -> Operator:
        parameters = inspect.signature(function).parameters
        if set(parameters) - {"half"} != set(inputs):
            raise ValueError(f"{function.__name__} takes other inputs than it declares")
        return Operator(
            name=function.__name__,
            parameters={
                name: parameter._replace(required=parameters[name].default is inspect._empty)
                for name, parameter in inputs.items()
            },
            domains=domains or {},
            result=result,
            takes_half="half" in parameters,
            compute=function,
        )

    return declare


def single(x: Array) -> Array:
    """Numbers as float32; no copy of what is float32 already."""
    return x.astype(np.float32, copy=False)


def elementwise(function: Callable[..., Any], *operands: Array, dtype: Any = None) -> Array:
    """`function` of broadcast operands, rounded once to `dtype` (default: the operands' own).

    Computes in float32, or in int64 for integers, whose results must fit their type.
    """
    dtype = np.dtype(dtype or operands[0].dtype)
    if np.issubdtype(operands[0].dtype, np.integer) and not np.issubdtype(dtype, np.floating):
        wide = function(*(x.astype(np.int64) for x in operands))
        return narrow(np.asarray(wide), dtype)
    if all(x.dtype == np.float32 for x in operands) and dtype != np.float16:
        return np.asarray(function(*operands)).astype(dtype, copy=False)
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    aligned = [x.reshape((1,) * (len(shape) - x.ndim) + x.shape) for x in operands]
    out = np.empty(shape, dtype)

    def compute(chunk: tuple[Any, ...]) -> None:
        with np.errstate(all="ignore"):  # threads do not inherit the caller's
            out[chunk] = function(*(single(_part(x, chunk)) for x in aligned))

    chunks = list(_chunks(shape))
    if len(chunks) == 1:
        compute(chunks[0])
    else:
        list(_THREADS.map(compute, chunks))  # the list raises what a thread raised
    return out


def narrow(x: Array, dtype: np.dtype) -> Array:
    """Integers or bools as `dtype`, exactly; UserError where one does not fit."""
    if np.issubdtype(dtype, np.integer) and x.size:
        limits = np.iinfo(dtype)
        low, high = int(x.min()), int(x.max())
        if low < limits.min or high > limits.max:
            raise UserError(f"its values reach from {low} to {high}, beyond {dtype}")
    return x.astype(dtype, copy=False)


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Indices that cut an array into pieces of at most _CHUNK elements, contiguous where it is."""
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= _CHUNK:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield ()
        return
    length = shape[axis - 1]
    step = max(1, _CHUNK // max(inner, 1))
    for outer in itertools.product(*(range(n) for n in shape[: axis - 1])):
        for start in range(0, length, step):
            yield (*outer, slice(start, min(start + step, length)))


def _part(x: Array, chunk: tuple[Any, ...]) -> Array:
    """What broadcasting `x` to the result gives at `chunk`, itself still to be broadcast."""
    return x[tuple(at if n != 1 else slice(None) for at, n in zip(chunk, x.shape, strict=False))]


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis as its index; UserError if there is none."""
    if not -rank <= axis < rank:
        raise UserError(f"axis {axis} is outside a tensor of rank {rank}")
    return axis % rank


def require(name: str, value: Any, only: Any) -> None:
    """Raise UserError for a value of the input `name` other than the one that is understood."""
    if value != only:
        raise UserError(f"its input '{name}' is {value}, not {only}")
