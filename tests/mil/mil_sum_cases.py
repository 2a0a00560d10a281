"""Cases of ops that add up, and of dequantised constants, with references from torch and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from coremltools.converters.mil.mil.types import np_int4_dtype, np_uint4_dtype
from mil_op_case import FLOATS, Case, integers, normal, t

CASES: list[Case] = []


def case(name: str, arrays: dict[str, np.ndarray], build: Any, expected: Any, **more: Any) -> None:
    CASES.append(Case(name, arrays, build, expected, **more))


for dtype in FLOATS:
    weight, bias = normal(6, 40, dtype=dtype), normal(6, dtype=dtype)
    for shape in ((40,), (3, 40), (2, 3, 40)):
        case(
            f"linear {shape} {dtype}",
            {"x": normal(*shape, dtype=dtype)},
            lambda x, w=weight: mb.linear(x=x, weight=w),
            lambda x, w=weight: torch.nn.functional.linear(t(x), t(w).double()),
            inside=4 * 40,
        )
    case(
        f"linear with bias {dtype}",
        {"x": normal(3, 40, dtype=dtype)},
        lambda x, w=weight, b=bias: mb.linear(x=x, weight=w, bias=b),
        lambda x, w=weight, b=bias: torch.nn.functional.linear(t(x), t(w).double(), t(b).double()),
        inside=4 * 40,
    )
    for transpose_x in (False, True):
        for transpose_y in (False, True):
            x, y = normal(2, 1, 3, 20, dtype=dtype), normal(5, 20, 6, dtype=dtype)
            case(
                f"matmul {transpose_x} {transpose_y} {dtype}",
                {
                    "x": x.swapaxes(-1, -2) if transpose_x else x,
                    "y": y.swapaxes(-1, -2) if transpose_y else y,
                },
                lambda x, y, a=transpose_x, b=transpose_y: mb.matmul(
                    x=x, y=y, transpose_x=a, transpose_y=b
                ),
                lambda x, y, a=transpose_x, b=transpose_y: torch.einsum(
                    f"bo{'ki' if a else 'ik'},o{'jk' if b else 'kj'}->boij",
                    t(x).expand(-1, 5, -1, -1),
                    t(y),
                ),
                inside=4 * 20,
            )
    case(
        f"matmul of a vector {dtype}",
        {"x": normal(20, dtype=dtype), "y": normal(20, 4, dtype=dtype)},
        lambda x, y: mb.matmul(x=x, y=y),
        lambda x, y: torch.einsum("k,kj->j", t(x), t(y)),
        inside=4 * 20,
    )

    q, k, v = (normal(2, 3, n, 8, dtype=dtype, seed=i) for i, n in enumerate((4, 6, 6)))
    attention = {"q": q, "k": k, "v": v}
    seen = np.tril(np.ones((4, 6), bool), 2)
    masks: dict[str, np.ndarray | None] = {
        "no": None,
        "bool": seen,
        "batched bool": np.stack([seen, ~np.tril(np.ones((4, 6), bool), -3)])[:, None],
        "float": normal(4, 6, dtype=dtype),
        "infinite float": np.where(seen, 0, -np.inf).astype(dtype),
    }
    for name, mask in masks.items():
        case(
            f"scaled_dot_product_attention {name} mask {dtype}",
            attention if mask is None else {**attention, "m": mask},
            lambda q, k, v, m=None: mb.scaled_dot_product_attention(
                query=q, key=k, value=v, **({} if m is None else {"attn_mask": m})
            ),
            lambda q, k, v, m=None: torch.nn.functional.scaled_dot_product_attention(
                t(q), t(k), t(v), None if m is None else t(m)
            ),
            inside=4 * 20,
        )
    case(
        f"scaled_dot_product_attention large scores {dtype}",  # whose powers overflow
        {**attention, "q": 200 * q},
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(t(q), t(k), t(v)),
        inside=4 * 500,  # scores reach 500, and their roundings become factors
        inferable=dtype == "float32",  # float16 rounds the scores there
    )

for name, function in (("reduce_sum", np.sum), ("reduce_mean", np.mean)):
    for dtype in (*FLOATS, "int32"):
        if (name, dtype) == ("reduce_mean", "int32"):
            continue
        for axes in (None, (0,), (-1, 0), (1,)):
            for keep in (False, True):
                case(
                    f"{name} {axes} {keep} {dtype}",
                    {"x": (normal(3, 4, 30) * 9).astype(dtype)},
                    lambda x, op=name, a=axes, k=keep: getattr(mb, op)(
                        x=x, keep_dims=k, **({} if a is None else {"axes": list(a)})
                    ),
                    lambda x, f=function, a=axes, k=keep: f(x, axis=a, keepdims=k),
                    inside=4 * 360,
                )
for dtype in (*FLOATS, "int32"):
    for axis in (0, 1, -1):
        case(
            f"cumsum {axis} {dtype}",
            {"x": (normal(3, 4, 5) * 9).astype(dtype)},
            lambda x, a=axis: mb.cumsum(x=x, axis=a),
            lambda x, a=axis: torch.cumsum(t(x), a),
            inside=4 * 5,
        )


def blockwise(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    out = np.empty(codes.shape)
    for place in np.ndindex(codes.shape):
        block = tuple(
            i // (n // m) for i, n, m in zip(place, codes.shape, scale.shape, strict=True)
        )
        out[place] = float(scale[block]) * float(codes[place])
    return out


CONSTEXPRS: list[tuple[np.ndarray, np.ndarray]] = []


def dequantised(name: str, codes: np.ndarray, scale: np.ndarray) -> None:
    def build(zero: Var) -> Var:
        constant = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale)
        return mb.add(x=constant, y=zero)

    CONSTEXPRS.append((codes, scale))
    case(
        f"constexpr_blockwise_shift_scale {name}",
        {"zero": np.zeros(1, scale.dtype)},
        build,
        lambda zero: blockwise(codes, scale),
        inferable=False,  # but see `CONSTEXPRS`
    )


INT4, UINT4 = integers(-8, 8, 6, 8, dtype="int8"), integers(0, 16, 6, 8, dtype="uint8")
for dtype in FLOATS:
    dequantised(f"int4 {dtype}", INT4.astype(np_int4_dtype), normal(6, 2, dtype=dtype))
    dequantised(f"two axes {dtype}", INT4.astype(np_int4_dtype), normal(2, 4, dtype=dtype))
    dequantised(f"one block {dtype}", INT4.astype(np_int4_dtype), normal(1, 1, dtype=dtype))
    dequantised(f"uint4 {dtype}", UINT4.astype(np_uint4_dtype), normal(6, 2, dtype=dtype))
    dequantised(
        f"int8 {dtype}",
        np.array([[127, -128], [-128, 127]], np.int8),
        normal(2, 1, dtype=dtype),
    )
    dequantised(
        f"uint8 {dtype}", integers(0, 256, 4, 6, 8, dtype="uint8"), normal(2, 3, 2, dtype=dtype)
    )
    dequantised(f"float data {dtype}", normal(6, 8, dtype=dtype), normal(3, 8, dtype=dtype))
dequantised("few int4", INT4[:1].astype(np_int4_dtype), normal(1, 2, dtype="float16"))  # immediate
