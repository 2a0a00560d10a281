"""Running saved functions: states, shared constants, both arithmetics, memory, and refusals."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.backend.mil import helper
from coremltools.converters.mil.mil import Var
from coremltools.converters.mil.mil.types import np_int4_dtype
from mil_programs import FunctionSpec, constant, edit_model, model_file, operations, save_program

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.mil.evaluator import Evaluator
from mobilemoe_mlx.mil.program import Constant, Package, read_package

RNG = np.random.default_rng(0)
WIDTH, ROWS, CONTEXT, VOCABULARY = 32, 3, 6, 20
CODES = RNG.integers(-8, 8, (VOCABULARY, WIDTH)).astype(np.int8)
SCALE = RNG.random((VOCABULARY, 1)).astype(np.float16)
TABLE = RNG.standard_normal((VOCABULARY, WIDTH)).astype(np.float16)


def _weight(name: str) -> Var:
    """A quantised weight that both functions share."""
    weight = mb.constexpr_blockwise_shift_scale(
        data=CODES.astype(np_int4_dtype), scale=SCALE, name=name
    )
    weight.op.data.op.weight_id = "codes"
    weight.op.scale.op.weight_id = "scale"
    return weight


def _step(tokens: Var, position: Var, cache: Var) -> list[Var]:
    """Write the rows of `tokens` into the cache at `position`; sum the cache; multiply."""
    rows = mb.gather(x=constant(TABLE, "table"), indices=tokens, name="rows")
    end = mb.add(x=position, y=np.int32([rows.shape[0]]))
    zero, width = np.int32([0]), np.int32([WIDTH])
    before = mb.read_state(input=cache, name="before")
    written = mb.slice_update(
        x=before,
        update=rows,
        begin=mb.concat(values=[position, zero], axis=0),
        end=mb.concat(values=[end, width], axis=0),
    )
    after = mb.coreml_update_state(state=cache, value=written, name="after")
    total = mb.reduce_sum(x=after, axes=[0], keep_dims=True, name="total")
    logits = mb.linear(x=total, weight=_weight("weight"), name="logits")
    return [logits, mb.reduce_sum(x=before, axes=[0, 1], name="sum_before")]


STEPS = {
    name: FunctionSpec(
        {"tokens": ("int32", (count,)), "position": ("int32", (1,))},
        _step,
        {"cache": (CONTEXT, WIDTH)},
    )
    for name, count in (("prefill", ROWS), ("decode", 1))
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(tmp_path_factory.mktemp("steps") / "steps.mlpackage", STEPS)


@pytest.fixture(scope="module")
def package(path: Path) -> Package:
    return read_package(path)


def _call(tokens: list[int], position: int) -> dict[str, np.ndarray]:
    return {"tokens": np.array(tokens, np.int32), "position": np.array([position], np.int32)}


@pytest.mark.parametrize("arithmetic", ["declared", "float32"])
def test_a_state_lives_from_call_to_call_and_from_function_to_function(
    package: Package, arithmetic: Any
) -> None:
    evaluator = Evaluator(package, arithmetic)
    half = np.float16 if arithmetic == "declared" else np.float32
    state = evaluator.new_state("prefill")
    held = state["cache"]
    assert held.dtype == half
    assert held.shape == (CONTEXT, WIDTH)
    assert not held.any()
    expected = np.zeros((CONTEXT, WIDTH), np.float16)
    weight = CODES.astype(np.float64) * SCALE
    calls = [("prefill", [3, 1, 4], 0), ("decode", [15], 3), ("decode", [9], 4), ("decode", [2], 0)]
    for function, tokens, position in calls:
        sum_before = expected.sum(dtype=np.float64)
        expected[position : position + len(tokens)] = TABLE[tokens]
        outputs = evaluator.run(function, _call(tokens, position), state)
        assert set(outputs) == {"logits", "sum_before"}
        assert outputs["logits"].dtype == half
        assert outputs["sum_before"].shape == ()
        assert state["cache"] is held
        np.testing.assert_array_equal(held, expected)
        reference = expected.sum(0, dtype=np.float64) @ weight.T
        # float16 rounds the sum, the weight and the product: a few times 2^-11 of WIDTH terms.
        error = (2.0**-11 if half == np.float16 else 2.0**-22) * 4 * np.abs(weight).max() * WIDTH
        np.testing.assert_allclose(outputs["logits"][0], reference, atol=error)
        np.testing.assert_allclose(outputs["sum_before"], sum_before, atol=error)


def test_a_run_that_fails_leaves_the_state_as_it_was(package: Package) -> None:
    evaluator = Evaluator(package)
    state = evaluator.new_state("decode")
    evaluator.run("decode", _call([5], 2), state)
    before = state["cache"].copy()
    for tokens, position in (([VOCABULARY], 0), ([-1], 0), ([1], CONTEXT), ([1, 2, 3], 4)):
        function = "decode" if len(tokens) == 1 else "prefill"
        with pytest.raises(
            UserError, match=rf"function '{function}', (gather 'rows'|slice_update)"
        ):
            evaluator.run(function, _call(tokens, position), state)
        np.testing.assert_array_equal(state["cache"], before)


def test_outputs_and_states_are_the_caller_s_own(package: Package) -> None:
    evaluator = Evaluator(package)
    state = evaluator.new_state("decode")
    first = evaluator.run("decode", _call([5], 2), state)
    kept = {name: value.copy() for name, value in first.items()}
    for value in first.values():
        value[...] = 0  # writable, and nothing of the evaluator's
    state = evaluator.new_state("decode")
    again = evaluator.run("decode", _call([5], 2), state)
    for name, value in again.items():
        np.testing.assert_array_equal(value, kept[name])


def test_watch_sees_every_variable_once_and_in_order(package: Package) -> None:
    evaluator = Evaluator(package)
    seen: list[str] = []
    evaluator.run(
        "decode",
        _call([5], 2),
        evaluator.new_state("decode"),
        lambda name, value: seen.append(name),
    )
    computed = [
        name
        for operation in package.functions["decode"].operations
        for name, _ in operation.outputs
        if operation.type != "const" and not operation.type.startswith("constexpr")
    ]
    assert seen == computed


# -- arithmetics ---------------------------------------------------------------------------------


def _rounding(x: Var) -> list[Var]:
    y = mb.cast(x=x, dtype="fp16")
    y = mb.add(x=y, y=np.float16(1), name="more")
    return [mb.cast(x=mb.sub(x=y, y=np.float16(2048)), dtype="fp32", name="rest")]


def test_declared_arithmetic_rounds_and_float32_does_not(tmp_path: Path) -> None:
    spec = FunctionSpec({"x": ("float32", (2,))}, _rounding)
    package = read_package(save_program(tmp_path / "r.mlpackage", {"main": spec}))
    x = np.float32([2048, 1000])
    rest = {
        arithmetic: Evaluator(package, arithmetic).run("main", {"x": x}, {})["rest"]
        for arithmetic in ("declared", "float32")
    }
    np.testing.assert_array_equal(rest["declared"], [0, -1047])  # float16 has no 2049
    np.testing.assert_array_equal(rest["float32"], [1, -1047])


# -- memory --------------------------------------------------------------------------------------


def _chain(x: Var) -> list[Var]:
    a = mb.sigmoid(x=x, name="a")
    b = mb.concat(values=[a, a, a], axis=0, name="b")
    c = mb.cast(x=b, dtype="fp16", name="c")
    mb.square(x=c, name="unused")
    return [mb.reduce_sum(x=c, axes=[0, 1], name="d"), mb.floor(x=a, name="e")]


def test_values_are_freed_after_their_last_use_and_counted_until_then(tmp_path: Path) -> None:
    spec = FunctionSpec({"x": ("float32", (10, 10))}, _chain)
    evaluator = Evaluator(read_package(save_program(tmp_path / "c.mlpackage", {"main": spec})))
    alive: list[set[str]] = []
    references: dict[str, weakref.ref[np.ndarray]] = {}

    def watch(name: str, value: np.ndarray) -> None:
        references[name] = weakref.ref(value)
        alive.append({n for n, r in references.items() if r() is not None})

    evaluator.run("main", {"x": np.ones((10, 10), np.float32)}, {}, watch)
    assert alive == [
        {"a"},
        {"a", "b"},
        {"a", "b", "c"},
        {"a", "c", "unused"},
        {"a", "c", "d"},
        {"a", "d", "e"},
    ]
    # x and a: 400 bytes each, b 1200, c and unused 600, d 2; x goes after a, b after c.
    assert evaluator.peak_bytes("main") == 400 + 1200 + 600


def _reads(package: Package, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places in weight.bin that are read from now on."""
    places: list[int] = []
    value = Package.value

    def counted(self: Package, held: Constant) -> Any:
        if held.blob is not None:
            places.append(held.blob)
        return value(self, held)

    monkeypatch.setattr(Package, "value", counted)
    return places


def test_functions_share_dequantised_constants_within_the_budget(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = {
        argument.blob
        for function in package.functions.values()
        for operation in function.operations
        if operation.type.startswith("constexpr")
        for (argument,) in operation.inputs.values()
        if isinstance(argument, Constant)
    }
    assert len(blobs) == 2  # codes and scale, once for both functions
    assert package.weights is not None
    stored = {blob.offset for blob in package.weights.blobs()}
    assert blobs < stored
    size = CODES.size * 2
    for budget, times in ((size, 1), (size - 1, 4)):
        evaluator = Evaluator(package, cache_bytes=budget)
        state = evaluator.new_state("decode")
        with monkeypatch.context() as patch:
            places = _reads(package, patch)
            for function in ("decode", "prefill") * 2:
                tokens = [1] if function == "decode" else [1, 2, 3]
                evaluator.run(function, _call(tokens, 0), state)
        assert [places.count(blob) for blob in blobs] == [times, times]


# -- refusals ------------------------------------------------------------------------------------


def test_inputs_must_be_those_of_the_function(package: Package) -> None:
    evaluator = Evaluator(package)
    state = evaluator.new_state("decode")
    good = _call([1], 0)
    wrong: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
        ("encode", good, state, "no function 'encode'.*it has decode, prefill"),
        ("decode", {"tokens": good["tokens"]}, state, "inputs are tokens, position, not tokens"),
        ("decode", {**good, "more": good["tokens"]}, state, "not tokens, position, more"),
        ("decode", _call([1, 2], 0), state, r"'tokens' is int32 \[2\], declared int32 \[1\]"),
        ("decode", {**good, "tokens": np.int64([1])}, state, r"'tokens' is int64 \[1\]"),
        ("decode", {**good, "tokens": [1]}, state, "'tokens' is no numpy array"),
        ("decode", good, {}, "states are cache, not none"),
        ("decode", good, {"cache": np.zeros((CONTEXT, WIDTH), np.float32)}, "'cache' is float32"),
        (
            "decode",
            good,
            {"cache": np.zeros((CONTEXT, 1), np.float16)},
            r"'cache' is float16 \[6, 1",
        ),
    ]
    for function, inputs, given, message in wrong:
        with pytest.raises(UserError, match=message):
            evaluator.run(function, inputs, given)
    with pytest.raises(UserError, match=r"no function 'decod' \(did you mean 'decode'\?\)"):
        evaluator.new_state("decod")


def _first(model: Any, op_type: str) -> Any:
    return operations(model, op_type, "decode")[0]


def _op(model: Any) -> None:
    _first(model, "linear").type = "linare"


def _input(model: Any) -> None:
    inputs = _first(model, "linear").inputs
    inputs["wieght"].CopyFrom(inputs["weight"])


def _offset(model: Any) -> None:
    inputs = _first(model, "constexpr_blockwise_shift_scale").inputs
    inputs["offset"].CopyFrom(inputs["scale"])


def _no_input(model: Any) -> None:
    del _first(model, "gather").inputs["indices"]


def _two_arguments(model: Any) -> None:
    arguments = _first(model, "linear").inputs["x"].arguments
    arguments.add().CopyFrom(arguments[0])


def _attribute(model: Any) -> None:
    _first(model, "linear").attributes["fast"].CopyFrom(helper.create_scalar_value(True))


def _constant_input(model: Any) -> None:
    first = _first(model, "const")
    first.inputs["x"].arguments.add().name = "tokens"


def _undefined(model: Any) -> None:
    _first(model, "linear").inputs["x"].arguments[0].name = "elsewhere"


def _used_too_early(model: Any) -> None:
    _first(model, "gather").inputs["indices"].arguments[0].name = "total"


def _defined_twice(model: Any) -> None:
    first, second = operations(model, "concat", "decode")
    second.outputs[0].name = first.outputs[0].name


def _computed_axis(model: Any) -> None:
    _first(model, "gather").inputs["axis"].arguments[0].name = "tokens"


def _rank_of_an_axis(model: Any) -> None:
    binding = _first(model, "gather").inputs["axis"].arguments[0]
    binding.value.CopyFrom(helper.create_tensor_value(np.int32([0])))


def _mixed_types(model: Any) -> None:
    _first(model, "add").inputs["x"].arguments[0].name = "rows"


def _type_outside_the_domain(model: Any) -> None:
    _first(model, "linear").inputs["x"].arguments[0].name = "tokens"


def _result_type(model: Any) -> None:
    _first(model, "reduce_sum").outputs[0].type.tensorType.dataType = 11  # float32


def _list(model: Any) -> None:
    binding = _first(model, "linear").inputs["x"].arguments[0]
    binding.value.CopyFrom(helper.create_list_scalarvalue(["a"], str))


def _state_as_a_tensor(model: Any) -> None:
    _first(model, "slice_update").inputs["x"].arguments[0].name = "cache"


def _tensor_as_a_state(model: Any) -> None:
    _first(model, "read_state").inputs["input"].arguments[0].name = "tokens"


def _state_s_shape(model: Any) -> None:
    _first(model, "read_state").outputs[0].type.tensorType.dimensions[0].constant.size = 1


def _write_of_other_shape(model: Any) -> None:
    _first(model, "write_state").inputs["data"].arguments[0].name = "rows"


def _opset(model: Any) -> None:
    function = model.mlProgram.functions["decode"]
    function.block_specializations["CoreML7"].CopyFrom(function.block_specializations["CoreML8"])
    del function.block_specializations["CoreML8"]
    function.opset = "CoreML7"


def _version(model: Any) -> None:
    model.specificationVersion = 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_op, r"linare 'logits': the op is not known \(did you mean 'linear'\?\)"),
        (_input, r"linear 'logits': the input 'wieght' is not known \(did you mean 'weight'\?\)"),
        (_offset, r"constexpr_blockwise_shift_scale .*: the input 'offset' is not known"),
        (_no_input, "gather 'rows': it lacks the input 'indices'"),
        (_two_arguments, "linear 'logits': its input 'x' has 2 values"),
        (_attribute, "linear 'logits': the attribute 'fast' is not known"),
        (_constant_input, "const '.*': it is no constant of its declared type"),
        (_undefined, "it uses 'elsewhere', which is not computed before it"),
        (_used_too_early, "gather 'rows': it uses 'total', which is not computed before it"),
        (_defined_twice, "concat .*: its result 'concat_.*' exists already"),
        (_computed_axis, "gather 'rows': its input 'axis' is not constant"),
        (_rank_of_an_axis, r"gather 'rows': its input 'axis' is int32 \[1\], not of rank 0"),
        (_mixed_types, r"add .*: its input 'y' is int32 \[1\], not float16"),
        (_type_outside_the_domain, r"linear .*'x' is int32 \[1\], not float16 or float32"),
        (_result_type, r"'total' is declared float32 \[1, 32\], not float16"),
        (_list, "linear 'logits': it uses a list"),
        (_state_as_a_tensor, "slice_update .*: it uses cache"),
        (_tensor_as_a_state, "read_state 'before': its input is no state"),
        (_state_s_shape, r"the state holds float16 \[6, 32\], not float16 \[1, 32\]"),
        (_write_of_other_shape, r"write_state .*the state holds .* not float16 \[1, 32\]"),
        (_opset, "function 'decode': is written for CoreML7, its model for CoreML8"),
        (_version, "specification version 8"),
    ],
)
def test_what_has_no_known_meaning_is_refused_before_anything_runs(
    path: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    package = read_package(edit_model(path, change, tmp_path / "copy.mlpackage"))
    with pytest.raises(UserError, match=message):
        Evaluator(package)


def test_an_ios_26_package_means_the_same(package: Package, path: Path, tmp_path: Path) -> None:
    newer = read_package(save_program(tmp_path / "newer.mlpackage", STEPS, target=ct.target.iOS26))
    assert newer.spec_version == package.spec_version + 1
    results = []
    for each in (package, newer):
        evaluator = Evaluator(each)
        results.append(
            evaluator.run("decode", _call([5], 2), evaluator.new_state("decode"))["logits"]
        )
    np.testing.assert_array_equal(*results)


def _declared_shape(model: Any) -> None:
    _first(model, "reduce_sum").outputs[0].type.tensorType.dimensions[0].constant.size = 2


def test_a_result_must_have_its_declared_shape(path: Path, tmp_path: Path) -> None:
    copy = edit_model(path, _declared_shape, tmp_path / "copy.mlpackage")
    evaluator = Evaluator(read_package(copy))
    with pytest.raises(
        UserError, match=r"reduce_sum 'total': 'total' is .*\[1, 32\], declared .*\[2"
    ):
        evaluator.run("decode", _call([1], 0), evaluator.new_state("decode"))


def _compared(x: Var) -> list[Var]:
    y = mb.cast(x=x, dtype="fp16", name="y")
    return [mb.cast(x=mb.equal(x=y, y=y), dtype="fp32")]


def test_a_cast_must_have_its_declared_type(tmp_path: Path) -> None:
    spec = FunctionSpec({"x": ("float32", (2,))}, _compared)
    path = save_program(tmp_path / "c.mlpackage", {"main": spec})

    def declare(model: Any) -> None:
        operations(model, "cast")[0].outputs[0].type.tensorType.dataType = 23  # int32

    copy = edit_model(path, declare, tmp_path / "copy.mlpackage")
    with pytest.raises(UserError, match=r"cast 'y': 'y' is float16 \[2\], declared int32 \[2\]"):
        Evaluator(read_package(copy)).run("main", {"x": np.ones(2, np.float32)}, {})


def test_damaged_weights_are_noticed_when_they_are_used(path: Path, tmp_path: Path) -> None:
    copy = edit_model(path, lambda model: None, tmp_path / "copy.mlpackage")
    weights = model_file(copy).parent / "weights" / "weight.bin"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    evaluator = Evaluator(read_package(copy))
    with pytest.raises(
        UserError, match=r"function 'decode'.*weight\.bin: .*export the package again"
    ):
        evaluator.run("decode", _call([1], 0), evaluator.new_state("decode"))


def test_a_blob_of_another_type_than_declared_is_noticed(path: Path, tmp_path: Path) -> None:
    def other_place(model: Any) -> None:
        weight = _first(model, "constexpr_blockwise_shift_scale")
        scale = weight.inputs["scale"].arguments[0].value.blobFileValue
        scale.offset = weight.inputs["data"].arguments[0].value.blobFileValue.offset

    evaluator = Evaluator(read_package(edit_model(path, other_place, tmp_path / "copy.mlpackage")))
    with pytest.raises(UserError, match="int4, but the program expects float16"):
        evaluator.run("decode", _call([1], 0), evaluator.new_state("decode"))
