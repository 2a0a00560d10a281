"""A saved Core ML ML Program (.mlpackage) as plain dataclasses; constants are read when asked for.

What has no place in these dataclasses is refused, not skipped: flexible shapes, nested blocks,
several specialisations of a function, image inputs, unknown attributes and protobuf fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.mil.weight_file import WeightFile, unpack_nibbles
from mobilemoe_mlx.mlpackage.features import read_features
from mobilemoe_mlx.mlpackage.model_file import model_file, read_spec
from mobilemoe_mlx.mlpackage.strict import UnknownContent, only, refuse_unknown_fields

_WEIGHTS_NAME = "@model_path/weights/weight.bin"  # as the program calls it

# MIL type -> (field of an immediate value, bits per element, numpy type of the elements read).
_IMMEDIATE = {
    "bool": ("bools", 8, np.bool_),
    "string": ("strings", 8, np.str_),
    "float16": ("bytes", 16, np.float16),
    "float32": ("floats", 32, np.float32),
    "float64": ("doubles", 64, np.float64),
    "int4": ("bytes", 4, np.int8),
    "uint4": ("bytes", 4, np.uint8),
    "int8": ("bytes", 8, np.int8),
    "uint8": ("bytes", 8, np.uint8),
    "int16": ("ints", 16, np.int16),
    "uint16": ("ints", 16, np.uint16),
    "int32": ("ints", 32, np.int32),
    "uint32": ("bytes", 32, np.uint32),
    "int64": ("longInts", 64, np.int64),
}

_MAX_RANK = 5  # of any tensor, by coremltools' own check of programs

_SIGNATURE_FIELDS = ("input", "output", "state")

_MIL_TYPES = {number: name.lower() for name, number in MIL_pb2.DataType.items()}


@dataclass(frozen=True)
class TensorType:
    """A tensor of fixed shape; rank 0 is a scalar."""

    dtype: str  # a key of _IMMEDIATE: "float16", "int4", "string", ...
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes at the declared type."""
        return -(-math.prod(self.shape) * _IMMEDIATE[self.dtype][1] // 8)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class StateType:
    """A state that holds a tensor."""

    tensor: TensorType


@dataclass(frozen=True)
class ListType:
    """A list or tuple, which only constants are."""

    elements: tuple[TensorType, ...]


Immediate = np.ndarray | str | tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that is written in the program, or the place of one in weight.bin."""

    type: TensorType | ListType
    value: Immediate | None  # None: it is in weight.bin
    blob: int | None  # offset of its metadata there


Argument = str | Constant  # a str is a variable's name


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation; `inputs` has one argument per name, or several for a variadic input."""

    type: str
    inputs: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[tuple[str, TensorType], ...]
    attributes: Mapping[str, Constant]

    @property
    def name(self) -> str:
        """The name coremltools gave it, or that of its first output."""
        given = self.attributes.get("name")
        if given is not None and isinstance(given.value, str):
            return given.value
        return self.outputs[0][0] if self.outputs else self.type


@dataclass(frozen=True, eq=False)
class Function:
    """One function: operations in an order in which they can be computed."""

    name: str
    opset: str
    inputs: Mapping[str, TensorType | StateType]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]

    @property
    def tensors(self) -> dict[str, TensorType]:
        """The inputs that are no states."""
        return {n: t for n, t in self.inputs.items() if isinstance(t, TensorType)}

    @property
    def states(self) -> dict[str, TensorType]:
        """What the states hold."""
        return {n: t.tensor for n, t in self.inputs.items() if isinstance(t, StateType)}


@dataclass(frozen=True)
class Signature:
    """What the model's description promises an app about one function."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    states: Mapping[str, TensorType]


@dataclass(frozen=True)
class Metadata:
    """What Xcode shows about a model."""

    short_description: str
    version: str
    author: str
    license: str
    user_defined: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Package:
    """A saved package; `functions` is the program, `signatures` the description of each."""

    path: Path
    spec_version: int
    functions: Mapping[str, Function]
    default_function: str
    signatures: Mapping[str, Signature]
    metadata: Metadata
    weights: WeightFile | None

    def value(self, constant: Constant) -> Immediate:
        """A constant's value; a blob of weight.bin is a read-only view, or unpacked if 4-bit.

        Raises UserError where weight.bin is missing or damaged, or holds something else.
        """
        if constant.blob is None:
            assert constant.value is not None
            return constant.value
        assert isinstance(constant.type, TensorType)
        if self.weights is None:
            raise UserError(f"{self.path}: has no weight.bin; export the package again.")
        return self.weights.read(constant.blob, constant.type.dtype, constant.type.shape)


def read_package(path: Path) -> Package:
    """Read the ML Program of the .mlpackage folder `path`; no weight is read.

    Raises UserError for a folder that is no whole package, for another kind of model, for a
    description that contradicts its program, and for anything that this module does not know.
    """
    model = model_file(path)
    spec = read_spec(model)
    weight_file = model.parent / "weights" / "weight.bin"
    try:
        _check_kind(spec)
        program = spec.mlProgram.functions
        functions = {name: _function(name, program[name]) for name in sorted(program)}
        signatures, default = _description(spec.description, list(functions))
        _compare(functions, signatures)
    except UnknownContent as error:
        raise UserError(f"{path}: {error}; it cannot be verified.") from None
    return Package(
        path=path,
        spec_version=spec.specificationVersion,
        functions=functions,
        default_function=default,
        signatures=signatures,
        metadata=_metadata(spec.description.metadata),
        weights=WeightFile(weight_file) if weight_file.exists() else None,
    )


def _check_kind(spec: Any) -> None:
    if spec.WhichOneof("Type") != "mlProgram":
        raise UnknownContent(
            f"it is a model of the kind '{spec.WhichOneof('Type')}', not an ML Program"
        )
    refuse_unknown_fields(spec)
    program = spec.mlProgram
    only(spec, "the model", "specificationVersion", "description", "mlProgram")
    only(program, "the program", "version", "functions", "docString", "attributes")
    if program.version != 1 or set(program.attributes) - {"buildInfo"}:
        raise UnknownContent(
            f"its program has version {program.version} and attributes {sorted(program.attributes)}"
        )


def _function(name: str, proto: Any) -> Function:
    where = f"function '{name}'"
    only(proto, where, "inputs", "opset", "block_specializations")
    if list(proto.block_specializations) != [proto.opset]:
        raise UnknownContent(f"{where} is specialised for {sorted(proto.block_specializations)}")
    block = proto.block_specializations[proto.opset]
    only(block, f"{where}'s block", "outputs", "operations")
    inputs: dict[str, TensorType | StateType] = {}
    for value in proto.inputs:
        if value.type.WhichOneof("type") == "stateType":
            wrapped = value.type.stateType.wrappedType
            inputs[value.name] = StateType(_tensor_type(wrapped, value.name))
        else:
            inputs[value.name] = _tensor_type(value.type, value.name)
    operations = tuple(_operation(operation, where) for operation in block.operations)
    return Function(name, proto.opset, inputs, tuple(block.outputs), operations)


def _operation(proto: Any, function: str) -> Operation:
    where = f"{function}, operation {proto.type} " + ", ".join(o.name for o in proto.outputs)
    only(proto, where, "type", "inputs", "outputs", "attributes")
    return Operation(
        type=proto.type,
        inputs={
            name: tuple(
                binding.name
                if binding.WhichOneof("binding") == "name"
                else _constant(binding.value, where)
                for binding in argument.arguments
            )
            for name, argument in proto.inputs.items()
        },
        outputs=tuple((o.name, _tensor_type(o.type, o.name)) for o in proto.outputs),
        attributes={name: _constant(value, where) for name, value in proto.attributes.items()},
    )


def _tensor_type(proto: Any, name: str) -> TensorType:
    if proto.WhichOneof("type") != "tensorType":
        raise UnknownContent(f"'{name}' is a {proto.WhichOneof('type')}")
    tensor = proto.tensorType
    only(tensor, f"'{name}'", "dataType", "rank", "dimensions")
    dtype = _MIL_TYPES.get(tensor.dataType, str(tensor.dataType))
    if dtype not in _IMMEDIATE:
        raise UnknownContent(f"'{name}' has elements of the type {dtype}")
    if any(d.WhichOneof("dimension") != "constant" for d in tensor.dimensions):
        raise UnknownContent(f"'{name}' has a flexible shape")
    if tensor.rank > _MAX_RANK:
        raise UnknownContent(f"'{name}' has the rank {tensor.rank}, beyond Core ML's {_MAX_RANK}")
    if len(tensor.dimensions) != tensor.rank:
        raise UnknownContent(f"'{name}' has {len(tensor.dimensions)} sizes for rank {tensor.rank}")
    return TensorType(dtype, tuple(d.constant.size for d in tensor.dimensions))


def _constant(proto: Any, where: str) -> Constant:
    kind, value = proto.type.WhichOneof("type"), proto.immediateValue
    if kind in ("listType", "tupleType"):
        items = value.list.values if kind == "listType" else value.tuple.values
        constants = [_constant(item, where) for item in items]
        types = tuple(c.type for c in constants if isinstance(c.type, TensorType))
        if len(types) < len(constants) or proto.WhichOneof("value") != "immediateValue":
            raise UnknownContent(f"{where} has a constant of nested lists or in a file")
        return Constant(ListType(types), tuple(c.value for c in constants), None)
    type = _tensor_type(proto.type, where)
    if proto.WhichOneof("value") == "blobFileValue":
        if proto.blobFileValue.fileName != _WEIGHTS_NAME:
            raise UnknownContent(
                f"{where} has a constant in the file {proto.blobFileValue.fileName}"
            )
        return Constant(type, None, proto.blobFileValue.offset)
    return Constant(type, _immediate(value.tensor, type, where), None)


def _immediate(tensor: Any, type: TensorType, where: str) -> Immediate:
    field, bits, numpy_type = _IMMEDIATE[type.dtype]
    if tensor.WhichOneof("value") != field:
        raise UnknownContent(
            f"{where} has a constant of {type} in the field {tensor.WhichOneof('value')}"
        )
    values: Any = getattr(tensor, field).values
    count = math.prod(type.shape)
    problem = UnknownContent(f"{where} has a constant that is no {type}")
    if len(values) != (type.nbytes if field == "bytes" else count):
        raise problem
    if field == "strings" and not type.shape:
        return str(values[0])
    if field == "bytes":
        raw = np.frombuffer(values, np.uint8)
        values = unpack_nibbles(raw, count, type.dtype) if bits == 4 else raw.view(numpy_type)
    try:
        array: np.ndarray = np.array(values, numpy_type).reshape(type.shape)
    except OverflowError:
        raise problem from None
    array.flags.writeable = False
    return array


def _description(proto: Any, functions: Sequence[str]) -> tuple[dict[str, Signature], str]:
    """The signature of each function and the default one; single functions have no name here."""
    only(
        proto, "the description", "functions", "defaultFunctionName", "metadata", *_SIGNATURE_FIELDS
    )
    if not proto.functions:
        if len(functions) != 1:
            raise UnknownContent(f"its description is of one function, its program has {functions}")
        return {functions[0]: _signature(proto)}, functions[0]
    only(proto, "the description", "functions", "defaultFunctionName", "metadata")
    _apart([f.name for f in proto.functions], "the description")
    for function in proto.functions:
        only(function, f"function '{function.name}'", "name", *_SIGNATURE_FIELDS)
    return {f.name: _signature(f) for f in proto.functions}, proto.defaultFunctionName


def _apart(names: Sequence[str], where: str) -> None:
    if len(set(names)) != len(names):
        raise UnknownContent(f"{where} has one name twice: {', '.join(names)}")


def _signature(proto: Any) -> Signature:
    found = {f: read_features(getattr(proto, f), fixed=True) for f in _SIGNATURE_FIELDS}
    _apart([name for features in found.values() for name in features], "a function")
    return Signature(
        *({n: TensorType(f.dtype, f.shape) for n, f in x.items()} for x in found.values())
    )


def _compare(functions: Mapping[str, Function], signatures: Mapping[str, Signature]) -> None:
    """Refuse a description that promises something else than the program has."""
    if set(functions) != set(signatures):
        raise UnknownContent(
            f"it describes {sorted(signatures)}, its program has {sorted(functions)}"
        )
    for name, function in functions.items():
        types = {n: t for operation in function.operations for n, t in operation.outputs}
        types |= function.tensors
        missing = [n for n in function.outputs if n not in types]
        if missing:
            raise UnknownContent(f"function '{name}' computes no {', '.join(missing)}")
        outputs = {n: types[n] for n in function.outputs}
        if signatures[name] != Signature(function.tensors, outputs, function.states):
            raise UnknownContent(f"function '{name}' is described other than it is")


def _metadata(proto: Any) -> Metadata:
    return Metadata(
        short_description=proto.shortDescription,
        version=proto.versionString,
        author=proto.author,
        license=proto.license,
        user_defined=dict(proto.userDefined),
    )
