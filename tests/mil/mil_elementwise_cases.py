"""Cases of ops that compute each element apart, with references from torch and numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from mil_op_case import FLOATS, Case, integers, normal, t

CASES: list[Case] = []


def case(name: str, arrays: dict[str, np.ndarray], build: Any, expected: Any, **more: Any) -> None:
    CASES.append(Case(name, arrays, build, expected, **more))


PAIRS = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "minimum": torch.minimum,
}
COMPARISONS = {
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "equal": torch.eq,
}
UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "floor": torch.floor,
    "square": torch.square,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
}

for dtype in (*FLOATS, "int32"):
    if dtype == "int32":
        x, y = integers(-99, 99, 3, 1, 4), integers(-99, 99, 2, 4)
        tied = {"x": integers(-2, 3, 3, 1, 4), "y": integers(-2, 3, 2, 4)}
    else:
        x, y = normal(3, 1, 4, dtype=dtype), normal(2, 4, dtype=dtype)
        tied = {"x": np.round(x), "y": np.round(y)}
    for name, function in PAIRS.items():
        case(
            f"{name} {dtype}",
            {"x": x, "y": y},
            lambda x, y, op=name: getattr(mb, op)(x=x, y=y),
            lambda x, y, f=function: f(t(x), t(y)),
        )
    for name, function in COMPARISONS.items():
        case(
            f"{name} {dtype}",
            tied,
            lambda x, y, op=name: getattr(mb, op)(x=x, y=y),
            lambda x, y, f=function: f(t(x), t(y)),
        )

for dtype in FLOATS:
    x = normal(3, 5, dtype=dtype)
    for name, function in UNARY.items():
        case(
            f"{name} {dtype}",
            {"x": x * 2},
            lambda x, op=name: getattr(mb, op)(x=x),
            lambda x, f=function: f(t(x)),
            inside=64,  # e^x as float32 libraries compute it
            inferable=name != "silu",
        )
    case(
        f"real_div {dtype}",
        {"x": x, "y": normal(5, dtype=dtype)},
        lambda x, y: mb.real_div(x=x, y=y),
        lambda x, y: t(x) / t(y),
    )
    case(
        f"rsqrt {dtype}",
        {"x": abs(x) + 1},
        lambda x: mb.rsqrt(x=x),
        lambda x: torch.rsqrt(t(x)),
    )
    case(
        f"rsqrt epsilon {dtype}",
        {"x": abs(x)},
        lambda x: mb.rsqrt(x=x, epsilon=np.float32(0.25)),
        lambda x: torch.rsqrt(t(x) + 0.25),
    )
    case(
        f"add a scalar {dtype}",
        {"x": x},
        lambda x, d=dtype: mb.add(x=x, y=np.dtype(d).type(1.5)),
        lambda x: t(x) + 1.5,
    )

case(
    "square int32",
    {"x": integers(-9, 9, 7)},
    lambda x: mb.square(x=x),
    lambda x: torch.square(t(x)),
)

CAST_NAMES = {"float16": "fp16", "float32": "fp32"}  # others are called in MIL as in numpy
CASTS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "float16", "float32")
for source in CASTS:
    if source == "bool":
        x = np.array([[True, False, True]])
    elif source in FLOATS:
        x = np.array([[0.0, 1.0, 99.75, 0.5, -0.75]], source)  # -0.75 is 0 as any integer
    else:
        x = np.array([[0, 1, 127, 99]], source)
    for target in CASTS:
        case(
            f"cast {source} to {target}",
            {"x": x},
            lambda x, to=target: mb.cast(x=x, dtype=CAST_NAMES.get(to, to)),
            # C's conversion, on values where it is defined; bool is "not zero".
            lambda x, to=target: x != 0 if to == "bool" else np.trunc(x) if "int" in to else x,
        )
for source, x in (("float16", -7.5), ("float32", -99.99), ("int8", -128), ("int16", -3)):
    case(
        f"cast negative {source}",
        {"x": np.array([x], source)},
        lambda x: mb.cast(x=x, dtype="int32"),
        lambda x: np.trunc(x),
    )
