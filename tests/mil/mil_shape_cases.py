"""Cases of ops that move elements, with references from torch and numpy."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from mil_op_case import Case, integers, normal, t

CASES: list[Case] = []


def case(name: str, arrays: dict[str, np.ndarray], build: Any, expected: Any, **more: Any) -> None:
    CASES.append(Case(name, arrays, build, expected, **more))


CUBE = normal(2, 3, 4)


def moved(name: str, build: Any, expected: Any, x: np.ndarray = CUBE, **more: Any) -> None:
    """A case of an op that moves elements of x, in every type that iOS 17 gave such ops."""
    types = more.pop("types", ("float16", "int8", "uint16", "bool"))
    for dtype in ("float32", "int32", *types):
        array = x > 0 if dtype == "bool" else np.abs(x * 9).astype(dtype)
        case(f"{name} {dtype}", {"x": array}, build, expected, **more)


for shape, result in {
    (6, 4): (6, 4),
    (4, -1): (4, 6),
    (0, 8): (3, 8),  # zeros count from the right: x's sizes are 2, 3, 4
    (0, -1, 0): (2, 3, 4),
    (1, 0, -1, 0): (1, 2, 3, 4),
    (0, 0, 2, 3, 4): (1, 1, 2, 3, 4),  # and are 1 beyond them
    (24,): (24,),
}.items():
    moved(
        f"reshape {shape}",
        lambda x, s=shape: mb.reshape(x=x, shape=list(s)),
        lambda x, s=result: x.reshape(s),
    )
for perm in ((2, 0, 1), (-1, 0, -2)):
    moved(
        f"transpose {perm}",
        lambda x, p=perm: mb.transpose(x=x, perm=list(p)),
        lambda x, p=perm: t(x).permute(p),
    )
for axes, shape in (
    ((0,), (1, 2, 3, 4)),
    ((1, -1), (2, 1, 3, 4, 1)),
    ((-5, 2), (1, 2, 1, 3, 4)),
):
    moved(
        f"expand_dims {axes}",
        lambda x, a=axes: mb.expand_dims(x=x, axes=list(a)),
        lambda x, s=shape: x.reshape(s),
    )
moved(
    "tile",
    lambda x: mb.tile(x=x, reps=[2, 1, 3]),
    lambda x: t(x).repeat(2, 1, 3),
    types=("float16", "bool"),
)

SLICES: dict[str, tuple[dict[str, Any], Any]] = {
    "plain": ({"begin": [0, 1, 1], "end": [2, 3, 2]}, np.s_[0:2, 1:3, 1:2]),
    "negative": ({"begin": [-1, -2, 0], "end": [2, -1, 4]}, np.s_[-1:2, -2:-1, 0:4]),
    "stride": ({"begin": [0, 0, 1], "end": [2, 3, 4], "stride": [1, 2, 2]}, np.s_[:, 0:3:2, 1:4:2]),
    "begin_mask": (
        {"begin": [1, 2, 3], "end": [1, 2, 3], "begin_mask": [True, True, True]},
        np.s_[:1, :2, :3],
    ),
    "end_mask": (
        {"begin": [1, 2, 3], "end": [1, 2, 3], "end_mask": [True, True, True]},
        np.s_[1:, 2:, 3:],
    ),
    "squeeze_mask": (
        {"begin": [0, -1, 1], "end": [2, 0, 0], "squeeze_mask": [False, True, True]},
        np.s_[0:2, -1, 1],
    ),
    "all masks": (
        {
            "begin": [1, 1, 1],
            "end": [0, 2, 2],
            "begin_mask": [False, True, False],
            "end_mask": [False, False, True],
            "squeeze_mask": [True, False, False],
        },
        np.s_[1, :2, 1:],
    ),
}
for name, (arguments, index) in SLICES.items():
    moved(
        f"slice_by_index {name}",
        lambda x, a=arguments: mb.slice_by_index(x=x, **a),
        lambda x, i=index: x[i],
    )
    for dtype in ("float16", "int32", "int8"):
        target = np.abs(CUBE * 9).astype(dtype)
        case(
            f"slice_update {name} {dtype}",
            {"x": target, "u": 50 + target[index]},
            lambda x, u, a=arguments: mb.slice_update(x=x, update=u, **a),
            partial(lambda x, u, i: _updated(x, u, i), i=index),
        )


def _updated(x: np.ndarray, u: np.ndarray, index: Any) -> np.ndarray:
    out = t(x).clone()
    out[index] = t(u)
    return out.numpy()


case(
    "slice_update at a computed place",
    {"x": CUBE, "u": normal(2, 1, 4), "at": np.array([2], np.int32)},
    lambda x, u, at: mb.slice_update(
        x=x,
        update=u,
        begin=mb.concat(values=[np.int32([0]), at, np.int32([0])], axis=0),
        end=mb.concat(values=[np.int32([2]), mb.add(x=at, y=np.int32([1])), np.int32([4])], axis=0),
    ),
    lambda x, u, at: np.concatenate([x[:, : at[0]], u, x[:, at[0] + 1 :]], 1),
)

for axis in (0, 2, -2):
    for dtype in ("float32", "float16", "int32", "bool"):
        parts = [
            normal(*(2 + i if a == axis % 3 else 3 for a in range(3)), seed=i) for i in range(3)
        ]
        arrays = {
            n: p > 0 if dtype == "bool" else (p * 9).astype(dtype)
            for n, p in zip("abc", parts, strict=True)
        }
        case(
            f"concat {axis} {dtype}",
            arrays,
            lambda a, b, c, axis=axis: mb.concat(values=[a, b, c], axis=axis),
            lambda a, b, c, axis=axis: torch.cat([t(a), t(b), t(c)], axis),
        )
    same = {"a": CUBE, "b": CUBE + 1, "c": CUBE + 2}
    case(
        f"stack {axis}",
        same,
        lambda a, b, c, axis=axis: mb.stack(values=[a, b, c], axis=axis),
        lambda a, b, c, axis=axis: torch.stack([t(a), t(b), t(c)], axis),
        inferable=False,  # only of scalars
    )
case(
    "concat scalars",
    {"a": np.int32(4), "b": np.int32(5)},
    lambda a, b: mb.concat(values=[a, b, np.int32(6)], axis=0),
    lambda a, b: np.array([4, 5, 6]),
)


for arguments, sizes in (
    ({"num_splits": 2, "axis": 2}, [2, 2]),
    ({"split_sizes": [1, 3], "axis": -1}, [1, 3]),
    ({"num_splits": 2, "split_sizes": [3, 1], "axis": 2}, [3, 1]),
):
    moved(
        f"split {arguments}",
        lambda x, a=arguments: mb.split(x=x, **a),
        lambda x, s=sizes: torch.split(t(x), s, 2),
        types=("float16", "bool"),
        results=("result_0", "result_1"),
    )

for axis in (0, 1, -1):
    for dtype, kind in (
        ("int8", "uint16"),
        ("float16", "int32"),
        ("float32", "uint8"),
        ("int32", "int8"),
    ):
        x = (CUBE * 9).astype(dtype)
        case(
            f"gather {axis} {dtype} by {kind}",
            {"x": x, "i": integers(0, x.shape[axis], 2, 5, dtype=kind)},
            lambda x, i, axis=axis: mb.gather(x=x, indices=i, axis=axis),
            lambda x, i, axis=axis: np.moveaxis(
                np.moveaxis(x, axis, 0)[i], (0, 1), (axis % 3, axis % 3 + 1)
            ),
        )
case(
    "gather one",
    {"x": CUBE, "i": np.int32(1)},
    lambda x, i: mb.gather(x=x, indices=i, axis=1, validate_indices=True),
    lambda x, i: x[:, 1],
)
