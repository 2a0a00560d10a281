"""Saved packages are read as coremltools wrote them; what the reader does not know, it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.backend.mil import helper
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.converters.mil.mil import Var
from coremltools.converters.mil.mil.types import np_int4_dtype
from mil_programs import FunctionSpec, constant, edit_model, model_file, operations, save_program

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.mil.program import (
    Constant,
    ListType,
    Metadata,
    Package,
    Signature,
    StateType,
    TensorType,
    read_package,
)

RNG = np.random.default_rng(0)
# Constants of ten elements and more lie in weight.bin, smaller ones in the program.
CONSTANTS: dict[str, Any] = {
    f"{dtype}_{'_'.join(map(str, shape)) or 'scalar'}": (RNG.standard_normal(shape) * 50).astype(
        np.dtype(dtype)
    )
    for dtype in ("float16", "float32", "int8", "int16", "int32")
    for shape in ((), (3,), (2, 2), (4, 5))
}
CONSTANTS |= {
    f"unsigned_{dtype}_{size}": RNG.integers(0, 99, size).astype(dtype)
    for dtype in ("uint8", "uint16")
    for size in (5, 50)
}
CONSTANTS |= {"truths": np.array([[True, False, True]]), "truth": np.bool_(True)}
CODES = RNG.integers(-8, 8, (4, 64)).astype(np.int8)
FEW_CODES = RNG.integers(-8, 8, (1, 9)).astype(np.int8)  # 9 nibbles: an odd number, in the program


def _main(x: Var, cache: Var) -> list[Var]:
    for name, value in CONSTANTS.items():
        mb.const(val=value, name=name)
    mb.constexpr_blockwise_shift_scale(
        data=FEW_CODES.astype(np_int4_dtype), scale=np.ones((1, 1), np.float16), name="few"
    )
    weight = mb.constexpr_blockwise_shift_scale(
        data=CODES.astype(np_int4_dtype), scale=np.ones((4, 2), np.float16), name="weight"
    )
    y = mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=weight, name="product")
    mb.coreml_update_state(state=cache, value=mb.read_state(input=cache, name="read"))
    return [mb.concat(values=[y, y], axis=0, name="twice")]


def _other(x: Var) -> list[Var]:
    return [mb.square(x=mb.add(x=x, y=constant(np.ones(20, np.float32))), name="squared")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(
        tmp_path_factory.mktemp("program") / "two.mlpackage",
        {
            "main": FunctionSpec({"x": ("float32", (3, 64))}, _main, {"cache": (2, 5)}),
            "other": FunctionSpec({"x": ("float32", (2, 20))}, _other),
        },
    )


@pytest.fixture(scope="module")
def package(path: Path) -> Package:
    return read_package(path)


def test_functions_and_description(package: Package) -> None:
    assert package.spec_version == ct.SPECIFICATION_VERSION + 8 == 9
    assert package.default_function == "main"
    main = package.functions["main"]
    assert main.opset == "CoreML8"
    assert main.inputs == {
        "x": TensorType("float32", (3, 64)),
        "cache": StateType(TensorType("float16", (2, 5))),
    }
    assert main.outputs == ("twice",)
    assert package.signatures == {
        "main": Signature(
            inputs={"x": TensorType("float32", (3, 64))},
            outputs={"twice": TensorType("float16", (6, 4))},
            states={"cache": TensorType("float16", (2, 5))},
        ),
        "other": Signature(
            inputs={"x": TensorType("float32", (2, 20))},
            outputs={"squared": TensorType("float32", (2, 20))},
            states={},
        ),
    }


def test_operations(package: Package) -> None:
    found = {operation.name: operation for operation in package.functions["main"].operations}
    product, twice = found["product"], found["twice"]
    assert product.type == "linear"
    assert product.inputs["weight"] == ("weight",)
    assert product.outputs == (("product", TensorType("float16", (3, 4))),)
    assert set(product.attributes) == {"name"}
    assert twice.inputs["values"] == ("product", "product")
    types = [operation.type for operation in package.functions["main"].operations]
    assert types.count("read_state") == types.count("write_state") == 1


def test_constants_of_every_type(package: Package) -> None:
    found = {o.outputs[0][0]: o for o in package.functions["main"].operations if o.outputs}
    for name, value in CONSTANTS.items():
        held = found[name].attributes["val"]
        read = package.value(held)
        assert (held.blob is None) == (np.size(value) < 10)
        assert isinstance(read, np.ndarray)
        assert read.dtype == value.dtype
        np.testing.assert_array_equal(read, value)
        assert not read.flags.writeable
    for name, codes in (("weight", CODES), ("few", FEW_CODES)):
        (held,) = found[name].inputs["data"]
        assert isinstance(held, Constant)
        assert held.type == TensorType("int4", codes.shape)
        assert held.type.nbytes == (codes.size + 1) // 2
        np.testing.assert_array_equal(package.value(held), codes)
    (dtype,) = found["twice"].inputs["axis"]
    assert package.value(found[dtype].attributes["val"]) == 0
    strings = [o for n, o in found.items() if n.endswith("dtype_0")]
    assert [package.value(o.attributes["val"]) for o in strings] == ["fp16"]


def test_agrees_with_coremltools_own_reader(path: Path, package: Package) -> None:
    spec = ct.utils.load_spec(str(path))
    theirs = load(spec, spec.specificationVersion, str(model_file(path).parent / "weights"))
    assert set(theirs.functions) == set(package.functions)
    for name, function in package.functions.items():
        values = {v.name: v for op in theirs.functions[name].operations for v in op.outputs}
        assert [o.name for o in theirs.functions[name].outputs] == list(function.outputs)
        for operation in function.operations:
            for output, declared in operation.outputs:
                if output not in values:
                    assert operation.type == "const"  # theirs drops what nothing uses
                    continue
                var = values[output]
                assert tuple(var.shape) == declared.shape
                if operation.type == "const":
                    np.testing.assert_array_equal(
                        package.value(operation.attributes["val"]), var.val
                    )


def test_no_weight_is_read_before_it_is_asked_for(path: Path, tmp_path: Path) -> None:
    copy = edit_model(path, lambda model: None, tmp_path / "copy.mlpackage")
    weights = copy / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    with weights.open("r+b") as file:
        file.truncate(64)
    package = read_package(copy)
    blobs = [
        o.attributes["val"]
        for o in package.functions["main"].operations
        if o.type == "const" and o.attributes["val"].blob is not None
    ]
    assert blobs
    for blob in blobs:
        with pytest.raises(UserError, match=r"weight\.bin: byte"):
            package.value(blob)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no weight\.bin"):
        read_package(copy).value(blobs[0])


def test_metadata(path: Path, tmp_path: Path) -> None:
    def describe(model: Any) -> None:
        metadata = model.description.metadata
        metadata.author, metadata.license = "A", "B"
        metadata.shortDescription, metadata.versionString = "C", "D"
        metadata.userDefined.clear()
        metadata.userDefined["key"] = "value"

    package = read_package(edit_model(path, describe, tmp_path / "copy.mlpackage"))
    assert package.metadata == Metadata("C", "D", "A", "B", {"key": "value"})


def test_lists_and_tuples_are_values_too(path: Path, tmp_path: Path) -> None:
    def add(model: Any) -> None:
        (product,) = operations(model, "linear")
        product.attributes["list"].CopyFrom(helper.create_list_scalarvalue(["a", "b"], str))
        value = product.attributes["tuple"]
        for number in (4, 5):
            value.immediateValue.tuple.values.add().CopyFrom(helper.create_scalar_value(number))
            value.type.tupleType.types.add().CopyFrom(helper.create_scalar_value(number).type)

    package = read_package(edit_model(path, add, tmp_path / "copy.mlpackage"))
    (product,) = (o for o in package.functions["main"].operations if o.type == "linear")
    text, numbers = product.attributes["list"], product.attributes["tuple"]
    assert text.type == ListType((TensorType("string", ()),) * 2)
    assert package.value(text) == ("a", "b")
    assert tuple(package.value(numbers)) == (4, 5)


def test_a_single_function_has_no_name_in_the_description(tmp_path: Path) -> None:
    path = save_program(
        tmp_path / "one.mlpackage",
        {"main": FunctionSpec({"x": ("float32", (2, 20))}, _other)},
    )
    package = read_package(path)
    assert package.default_function == "main"
    assert set(package.signatures) == {"main"}


def _unknown_field(model: Any) -> None:
    model.MergeFromString(b"\xf8\xf0\x04\x01")  # number 9999, a 1


def _nested_block(model: Any) -> None:
    operations(model, "linear")[0].blocks.add()


def _second_specialisation(model: Any) -> None:
    blocks = model.mlProgram.functions["main"].block_specializations
    blocks["CoreML7"].CopyFrom(blocks["CoreML8"])


def _flexible(model: Any) -> None:
    tensor = operations(model, "linear")[0].outputs[0].type.tensorType
    tensor.dimensions[0].unknown.variadic = False


def _rank(model: Any) -> None:
    operations(model, "linear")[0].outputs[0].type.tensorType.rank = 3


def _strange_type(model: Any) -> None:
    operations(model, "linear")[0].outputs[0].type.tensorType.dataType = 13  # bfloat16


def _other_file(model: Any) -> None:
    value = operations(model, "constexpr_blockwise_shift_scale")[-1].inputs["data"].arguments[0]
    value.value.blobFileValue.fileName = "@model_path/weights/other.bin"


def _short_constant(model: Any) -> None:
    value = operations(model, "const")[1].attributes["val"].immediateValue.tensor
    value.bytes.values = value.bytes.values[:-1]


def _constant_of_other_field(model: Any) -> None:
    operations(model, "const")[1].attributes["val"].immediateValue.tensor.ints.values.append(1)


def _renamed_input(model: Any) -> None:
    model.description.functions[0].input[0].name = "y"


def _reshaped_output(model: Any) -> None:
    model.description.functions[0].output[0].type.multiArrayType.shape[0] = 7


def _flexible_description(model: Any) -> None:
    array = model.description.functions[0].input[0].type.multiArrayType
    array.shapeRange.sizeRanges.add().upperBound = 3


def _optional_input(model: Any) -> None:
    model.description.functions[0].input[0].type.isOptional = True


def _missing_function(model: Any) -> None:
    del model.description.functions[1]


def _missing_output(model: Any) -> None:
    model.mlProgram.functions["main"].block_specializations["CoreML8"].outputs[0] = "nothing"


def _function_attribute(model: Any) -> None:
    model.mlProgram.functions["main"].attributes["a"].CopyFrom(helper.create_scalar_value(1))


def _program_attribute(model: Any) -> None:
    model.mlProgram.attributes["a"].CopyFrom(helper.create_scalar_value(1))


def _updatable(model: Any) -> None:
    model.isUpdatable = True


def _described_twice(model: Any) -> None:
    model.description.functions.add().CopyFrom(model.description.functions[0])


def _input_twice(model: Any) -> None:
    function = model.description.functions[0]
    function.input.add().CopyFrom(function.input[0])


def _input_as_output(model: Any) -> None:
    function = model.description.functions[0]
    function.output.add().CopyFrom(function.input[0])


def _inputs_beside_functions(model: Any) -> None:
    model.description.input.add().CopyFrom(model.description.functions[0].input[0])


def _rank_6(model: Any) -> None:
    tensor = operations(model, "linear")[0].outputs[0].type.tensorType
    tensor.rank = 6
    for _ in range(4):
        tensor.dimensions.add().constant.size = 1


def _other_kind(model: Any) -> None:
    model.neuralNetwork.layers.add().name = "layer"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unknown_field, "fields that this version of coremltools cannot name"),
        (_nested_block, "linear product has blocks"),
        (_second_specialisation, r"specialised for \['CoreML7', 'CoreML8'\]"),
        (_flexible, "'product' has a flexible shape"),
        (_rank, "'product' has 2 sizes for rank 3"),
        (_strange_type, "'product' has elements of the type bfloat16"),
        (_other_file, r"in the file @model_path/weights/other\.bin"),
        (_short_constant, "a constant that is no float16"),
        (_constant_of_other_field, "in the field ints"),
        (_renamed_input, "described other than it is"),
        (_reshaped_output, "described other than it is"),
        (_flexible_description, "'x' has shapeRange"),
        (_optional_input, "'x' has isOptional"),
        (_missing_function, "it describes"),
        (_described_twice, "the description has one name twice"),
        (_input_twice, "'x' is declared twice"),
        (_input_as_output, "a function has one name twice"),
        (_inputs_beside_functions, "the description has input"),
        (_rank_6, "'product' has the rank 6"),
        (_missing_output, "computes no nothing"),
        (_function_attribute, "function 'main' has attributes"),
        (_program_attribute, "attributes"),
        (_updatable, "the model has isUpdatable"),
        (_other_kind, "of the kind 'neuralNetwork'"),
    ],
)
def test_what_is_not_known_is_refused(
    path: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    copy = edit_model(path, change, tmp_path / "copy.mlpackage")
    with pytest.raises(UserError, match=message):
        read_package(copy)


def test_a_damaged_package_is_a_sentence(path: Path, tmp_path: Path) -> None:
    copy = edit_model(path, lambda model: None, tmp_path / "copy.mlpackage")
    manifest = copy / "Manifest.json"
    whole = manifest.read_text()
    content = json.loads(whole)
    root = content["itemInfoEntries"][content["rootModelIdentifier"]]

    model_file(copy).write_bytes(model_file(path).read_bytes()[:-7])
    with pytest.raises(UserError, match="is damaged"):
        read_package(copy)
    model_file(copy).unlink()
    with pytest.raises(UserError, match=r"model\.mlmodel: No such file"):
        read_package(copy)
    for text, message in (
        (whole[:-9], "is not valid JSON"),
        ("[]", "names no model"),
        ("{}", "names no model"),
        (json.dumps({**content, "rootModelIdentifier": "x"}), "names no model"),
    ):
        manifest.write_text(text)
        with pytest.raises(UserError, match=message):
            read_package(copy)
    root["path"] = "../../elsewhere.mlmodel"
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="outside the package"):
        read_package(copy)
    manifest.unlink()
    with pytest.raises(UserError, match="not a Core ML package"):
        read_package(copy)
    with pytest.raises(UserError, match="not a Core ML package"):
        read_package(tmp_path / "nothing.mlpackage")
