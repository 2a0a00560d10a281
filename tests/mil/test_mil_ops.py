"""Every op: saved in a package, read back, evaluated, compared with torch, numpy and coremltools.

References are in float64. A result may be off by its own rounding (half a unit in the last place of
its type) and by float32's rounding of what happens inside the op (`Case.inside`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mil_elementwise_cases
import mil_shape_cases
import mil_sum_cases
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil import mil
from coremltools.converters.mil.mil import Var
from coremltools.converters.mil.mil.ops.defs.iOS18 import constexpr_blockwise_shift_scale
from mil_op_case import Case
from mil_programs import IOS18, FunctionSpec, save_program

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.mil.evaluator import Evaluator
from mobilemoe_mlx.mil.ops import OPERATORS, base, sums
from mobilemoe_mlx.mil.program import Package, read_package

CASES = [*mil_elementwise_cases.CASES, *mil_shape_cases.CASES, *mil_sum_cases.CASES]
INFERABLE = [item for item in CASES if item.inferable]

INTERFACE = ("float16", "float32", "int32")  # the types that a function's inputs may have

HALF_ULP = {np.dtype(np.float16): 2.0**-11, np.dtype(np.float32): 2.0**-24}  # relative
HALF_SUBNORMAL = {np.dtype(np.float16): 2.0**-25, np.dtype(np.float32): 2.0**-150}
SINGLE = 2.0**-24


def _spec(item: Case) -> FunctionSpec:
    """A function of int32 and float inputs, from which arrays of other types and ranks are made."""

    def build(**given: Var) -> list[Var]:
        variables = {}
        for name, array in item.arrays.items():
            var = given[f"in_{name}"]
            if array.dtype.name not in INTERFACE:
                var = mb.cast(x=var, dtype=array.dtype.name)
            if array.ndim == 0:
                var = mb.slice_by_index(x=var, begin=[0], end=[1], squeeze_mask=[True])
            variables[name] = var
        results = _results(item.build(**variables))
        for var, name in zip(results, item.results, strict=True):
            var.name = name
        return [mb.cast(x=var, dtype="int32") for var in results]

    shapes = {
        f"in_{name}": (a.dtype.name if a.dtype.name in INTERFACE else "int32", a.shape or (1,))
        for name, a in item.arrays.items()
    }
    return FunctionSpec(shapes, build)


def _results(built: Any) -> tuple[Var, ...]:
    return tuple(built) if isinstance(built, tuple | list) else (built,)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    functions = {f"case_{i}": _spec(item) for i, item in enumerate(CASES)}
    path = tmp_path_factory.mktemp("ops") / "ops.mlpackage"
    return read_package(save_program(path, functions))


@pytest.fixture(scope="module", params=["declared", "declared in small pieces", "float32"])
def evaluator(request: pytest.FixtureRequest, package: Package) -> Iterator[Evaluator]:
    with pytest.MonkeyPatch.context() as patch:
        if "pieces" in request.param:
            patch.setattr(base, "_CHUNK", 5)
            patch.setattr(sums, "_WEIGHT_ELEMENTS", 5)
        yield Evaluator(package, request.param.split()[0])


def test_every_op_has_a_case(package: Package) -> None:
    used = {op.type for function in package.functions.values() for op in function.operations}
    assert used - {"const"} == set(OPERATORS)


@pytest.mark.parametrize("index", range(len(CASES)), ids=[item.name for item in CASES])
def test_op(evaluator: Evaluator, index: int) -> None:
    item = CASES[index]
    inputs = {f"in_{n}": _as_input(a, evaluator) for n, a in item.arrays.items()}
    computed: dict[str, np.ndarray] = {}
    evaluator.run(f"case_{index}", inputs, {}, computed.__setitem__)
    for name, reference in zip(item.results, _expected(item), strict=True):
        _compare(computed[name], reference, item.inside)


def _as_input(array: np.ndarray, evaluator: Evaluator) -> np.ndarray:
    array = np.atleast_1d(array)
    if array.dtype == np.float16 and evaluator.arithmetic == "float32":
        return array.astype(np.float32)
    return array if array.dtype.name in INTERFACE else array.astype(np.int32)


def _expected(item: Case) -> list[np.ndarray]:
    wide = {
        n: a.astype(np.float64) if a.dtype.kind == "f" else np.asarray(a)
        for n, a in item.arrays.items()
    }
    found = item.expected(**wide)
    return [np.asarray(f) for f in (found if isinstance(found, tuple | list) else (found,))]


def _compare(result: np.ndarray, reference: np.ndarray, inside: float) -> None:
    assert result.shape == reference.shape
    if result.dtype.kind != "f":
        np.testing.assert_array_equal(result, reference)
        return
    reference = reference.astype(np.float64)
    error = np.abs(result.astype(np.float64) - reference)
    rounding = HALF_ULP[result.dtype] * np.abs(reference) + HALF_SUBNORMAL[result.dtype]
    assert np.all(error <= 1.001 * rounding + inside * SINGLE * np.abs(reference).max(initial=0))


@pytest.mark.parametrize("item", INFERABLE, ids=[item.name for item in INFERABLE])
def test_coremltools_computes_the_same(item: Case) -> None:
    """The references of these cases are also what coremltools makes of constants."""
    with mil.Function({"x": mb.placeholder((1,))}, opset_version=IOS18):
        results = _results(item.build(**{n: mb.const(val=a) for n, a in item.arrays.items()}))
    for var, reference in zip(results, _expected(item), strict=True):
        value = np.asarray(var.val)
        error = 2.0**-8 if value.dtype == np.float16 else 2.0**-18  # rounds at each step inside
        assert value.shape == reference.shape
        np.testing.assert_allclose(value, reference, rtol=error, atol=error)


F = np.float32(range(12)).reshape(3, 4)
I = np.int32(range(12)).reshape(3, 4)  # noqa: E741
BIG = np.int32([2**31 - 1])
HALF = np.dtype(np.float16)

# What an op must refuse instead of giving some number: (op, inputs, a part of the message).
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("add", {"x": BIG, "y": np.int32([1])}, "beyond int32"),
    ("sub", {"x": -BIG, "y": np.int32([2])}, "beyond int32"),
    ("mul", {"x": BIG, "y": np.int32([2])}, "beyond int32"),
    ("square", {"x": BIG}, "beyond int32"),
    ("reduce_sum", {"x": np.stack([BIG, BIG])}, "beyond int32"),
    ("cumsum", {"x": np.stack([BIG, BIG])}, "beyond int32"),
    ("reduce_sum", {"x": F, "axes": (2,)}, "axis 2"),
    ("cumsum", {"x": F, "axis": -3}, "axis -3"),
    ("cumsum", {"x": F, "exclusive": True}, "'exclusive' is True"),
    ("cumsum", {"x": F, "reverse": True}, "'reverse' is True"),
    ("cast", {"x": I, "dtype": "int64", "half": HALF}, "unknown type"),
    ("cast", {"x": np.int32([-1]), "dtype": "uint16", "half": HALF}, "beyond uint16"),
    ("cast", {"x": np.int32([128]), "dtype": "int8", "half": HALF}, "beyond int8"),
    ("cast", {"x": np.float32([256.0]), "dtype": "uint8", "half": HALF}, "beyond uint8"),
    ("cast", {"x": np.float32([2.0**31]), "dtype": "int32", "half": HALF}, "beyond int32"),
    ("cast", {"x": np.float32([np.nan]), "dtype": "int32", "half": HALF}, "NaN"),
    ("cast", {"x": np.float16([-np.inf]), "dtype": "int32", "half": HALF}, "infinity"),
    ("reshape", {"x": F, "shape": (-1, -1)}, "shape"),
    ("reshape", {"x": F, "shape": (-2, 6)}, "shape"),
    ("tile", {"x": F, "reps": (2,)}, "rank 2"),
    ("tile", {"x": F, "reps": (0, 1)}, "rank 2"),
    ("concat", {"values": (F, F), "axis": 0, "interleave": True}, "'interleave' is True"),
    ("split", {"x": F, "axis": 1, "num_splits": 3}, "equal parts"),
    ("split", {"x": F, "axis": 1}, "equal parts"),
    ("split", {"x": F, "axis": 1, "split_sizes": (1, 2)}, "parts of sizes"),
    ("split", {"x": F, "axis": 1, "split_sizes": (2, 2), "num_splits": 3}, "parts of sizes"),
    ("split", {"x": F, "axis": 1, "split_sizes": (5, -1)}, "parts of sizes"),
    ("gather", {"x": F, "indices": np.int32([3])}, "from 3 to 3, of 3"),
    ("gather", {"x": F, "indices": np.int32([0, -1])}, "from -1 to 0, of 3"),
    ("gather", {"x": F, "indices": np.int32([4]), "axis": 1}, "of 4"),
    ("gather", {"x": F, "indices": I[:, 0], "axis": 1, "batch_dims": 1}, "'batch_dims' is 1"),
    ("slice_by_index", {"x": F, "begin": (0, 0), "end": (3, 5)}, "reaches beyond 4"),
    ("slice_by_index", {"x": F, "begin": (3, 0), "end": (3, 4)}, "reaches beyond 3"),
    ("slice_by_index", {"x": F, "begin": (-4, 0), "end": (3, 4)}, "reaches beyond 3"),
    ("slice_by_index", {"x": F, "begin": (0, 0), "end": (3, 4), "stride": (1, -1)}, "beyond"),
    ("slice_by_index", {"x": F, "begin": (0,), "end": (3,)}, "rank 2"),
    (
        "slice_by_index",
        {"x": F, "begin": (0, 4), "end": (3, 0), "squeeze_mask": (False, True)},
        "reaches beyond 4",
    ),
    ("slice_update", {"x": F, "update": F[:2], "begin": (2, 0), "end": (4, 4)}, "beyond 3"),
    ("slice_update", {"x": F, "update": F[:1], "begin": (0, 0), "end": (2, 4)}, "its update"),
    ("slice_update", {"x": F, "update": F[0], "begin": (0, 0), "end": (1, 4)}, "its update"),
    ("linear", {"x": F, "weight": F.T}, "multiplies"),
    ("linear", {"x": F, "weight": F, "bias": F[0]}, "bias"),
    (
        "scaled_dot_product_attention",
        {"query": F[None], "key": F[None], "value": np.stack([F, F])},
        "batches",
    ),
    ("scaled_dot_product_attention", {"query": F, "key": F, "value": F}, "ranks"),
    (
        "scaled_dot_product_attention",
        {"query": F[None], "key": F[None], "value": F[None], "attn_mask": np.ones((2, 3, 3), bool)},
        "mask",
    ),
    (
        "scaled_dot_product_attention",
        {"query": F[None], "key": F[None], "value": F[None], "attn_mask": np.ones(3, np.float16)},
        "mask",
    ),
    ("constexpr_blockwise_shift_scale", {"data": I, "scale": F[:2]}, "divide"),
    ("constexpr_blockwise_shift_scale", {"data": I, "scale": F[0]}, "divide"),
]


@pytest.mark.parametrize(
    ("op", "inputs", "message"), REFUSED, ids=[f"{op} {why}" for op, _, why in REFUSED]
)
def test_what_has_no_right_result_is_refused(op: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OPERATORS[op].compute(**inputs)


def test_dequantised_constants_are_what_coremltools_makes_of_them() -> None:
    for codes, scale in mil_sum_cases.CONSTEXPRS:
        theirs = constexpr_blockwise_shift_scale.decompress(codes, scale, None)
        ours = mil_sum_cases.blockwise(codes, scale)
        error = 2.0**-10 if scale.dtype == np.float16 else 2.0**-22  # a rounding at each step
        np.testing.assert_allclose(theirs, ours, rtol=error, atol=error * np.abs(ours).max())


def test_a_vector_is_a_column_where_coremltools_cannot_build_it() -> None:
    column = F[0]
    np.testing.assert_array_equal(OPERATORS["matmul"].compute(x=F, y=column), F @ column)


def test_float16_overflows_to_infinity_and_rounds_to_even() -> None:
    cast = OPERATORS["cast"].compute
    x = np.float32([70000, 2049, 2051, 65519, 65520])
    with np.errstate(over="ignore"):
        half = cast(x=x, dtype="fp16", half=np.dtype(np.float16))
    np.testing.assert_array_equal(half, np.float16([np.inf, 2048, 2052, 65504, np.inf]))
    kept = cast(x=x, dtype="fp16", half=np.dtype(np.float32))
    np.testing.assert_array_equal(kept, x)
