"""Ops that compute each element apart: arithmetic, comparison, cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.mil.ops.base import (
    ANY,
    FLOAT,
    FLOAT_INT32,
    Array,
    Operator,
    elementwise,
    narrow,
    operation,
    scalar,
    tensor,
)


def _named(name: str, function: Callable[..., Array]) -> Callable[..., Array]:
    function.__name__ = name
    return function


def _unary(name: str, function: Callable[[Array], Any], domain: tuple[str, ...]) -> Operator:
    return operation(x=tensor("T"), domains={"T": domain})(
        _named(name, lambda x: elementwise(function, x))
    )


def _binary(
    name: str, function: Callable[[Array, Array], Any], domain: tuple[str, ...]
) -> Operator:
    return operation(x=tensor("T"), y=tensor("T"), domains={"T": domain})(
        _named(name, lambda x, y: elementwise(function, x, y))
    )


def _comparison(name: str, function: Callable[[Array, Array], Any]) -> Operator:
    return operation("bool", x=tensor("T"), y=tensor("T"), domains={"T": FLOAT_INT32})(
        _named(name, lambda x, y: elementwise(function, x, y, dtype=np.bool_))
    )


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


add = _binary("add", np.add, FLOAT_INT32)
sub = _binary("sub", np.subtract, FLOAT_INT32)
mul = _binary("mul", np.multiply, FLOAT_INT32)
minimum = _binary("minimum", np.minimum, FLOAT_INT32)
# Core ML documents int32 too, but does not say what 7 / 2 is as int32.
real_div = _binary("real_div", np.true_divide, FLOAT)

floor = _unary("floor", np.floor, FLOAT)
square = _unary("square", np.square, FLOAT_INT32)
sigmoid = _unary("sigmoid", _sigmoid, FLOAT)
silu = _unary("silu", lambda x: x * _sigmoid(x), FLOAT)

less = _comparison("less", np.less)
less_equal = _comparison("less_equal", np.less_equal)
greater = _comparison("greater", np.greater)
greater_equal = _comparison("greater_equal", np.greater_equal)
equal = _comparison("equal", np.equal)


@operation(x=tensor("T"), epsilon=scalar("U"), domains={"T": FLOAT, "U": FLOAT})
def rsqrt(x: Array, epsilon: float = 1e-12) -> Array:
    return elementwise(lambda v: 1 / np.sqrt(v + np.float32(epsilon)), x)


_CAST_TYPES = {
    "bool": np.bool_,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "fp32": np.float32,
}


@operation(None, x=tensor("T"), dtype=scalar("string"), domains={"T": ANY})
def cast(x: Array, dtype: str, half: np.dtype) -> Array:
    """Floats lose their fraction on the way to an integer; nothing wraps around.

    UserError for a value that the integer type does not have (NaN and infinities included).
    """
    if dtype not in _CAST_TYPES and dtype != "fp16":
        raise UserError(f"it casts to the unknown type '{dtype}'")
    target = half if dtype == "fp16" else np.dtype(_CAST_TYPES[dtype])
    if x.dtype == target:
        return x
    if target == np.bool_:
        return np.asarray(np.not_equal(x, 0))
    if np.issubdtype(target, np.integer):
        if np.issubdtype(x.dtype, np.floating):
            whole = np.asarray(np.trunc(x, dtype=np.float64))
            if not np.isfinite(whole).all():
                raise UserError(f"it casts an infinity or NaN to {dtype}")
            return _narrow_floats(whole, target)
        return narrow(x, target)
    return elementwise(lambda v: v, x, dtype=target)


def _narrow_floats(whole: Array, target: np.dtype) -> Array:
    limits = np.iinfo(target)
    if whole.size and (whole.min() < limits.min or whole.max() > limits.max):
        raise UserError(
            f"its values reach from {whole.min():.0f} to {whole.max():.0f}, beyond {target}"
        )
    return whole.astype(target)
