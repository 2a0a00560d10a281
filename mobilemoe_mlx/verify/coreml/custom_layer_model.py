"""A saved custom-layer package as plain dataclasses; nothing is read that the contract lacks.

Everything that can be checked without numbers is checked when the package is read: that each layer,
parameter, weight and shape is one of the contract (coreml/README.md), and that the layers fit
together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import Model_pb2, NeuralNetwork_pb2

from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.custom.contract import LayerClass
from mobilemoe_mlx.export.coreml.resources import resources_folder
from mobilemoe_mlx.mlpackage.features import Feature, read_features
from mobilemoe_mlx.mlpackage.model_file import model_file, read_spec
from mobilemoe_mlx.mlpackage.strict import UnknownContent, only, refuse_unknown_fields
from mobilemoe_mlx.verify.coreml.side_file_reader import SideFile

_DTYPES = ("int32", "float32")  # of inputs and outputs
_WEIGHT_FIELDS = {"uint8": "rawValue", "float16": "float16Value", "float32": "floatValue"}


@dataclass(frozen=True)
class Layer:
    """One layer of a package."""

    name: str
    kind: LayerClass
    parameters: Mapping[str, Any]  # those of the contract; not where weights lie
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: Callable[[], list[np.ndarray]]  # reads them: bytes (uint8), one array per entry


@dataclass(frozen=True)
class CustomLayerModel:
    """A package whose layers are those of the contract and fit together."""

    path: Path
    inputs: Mapping[str, Feature]
    outputs: Mapping[str, Feature]
    layers: tuple[Layer, ...]  # in an order in which they can be computed
    user_defined: Mapping[str, str]  # of the metadata

    def layers_of(self, kind: LayerClass) -> list[Layer]:
        """The layers of one class."""
        return [layer for layer in self.layers if layer.kind is kind]


def read_custom_layer_model(path: Path, resources: Path | None = None) -> CustomLayerModel:
    """Read the package at `path`; the protobuf message stays in memory, a side file does not.

    `resources`: the folder with the side weight file, if there is one; by default that beside the
    package. Raises UserError for a damaged package and for anything that the contract does not
    have.
    """
    folder = resources_folder(path) if resources is None else resources
    try:
        spec = read_spec(model_file(path))
        _check_model(spec)
        side = SideFile(folder)
        package = CustomLayerModel(
            path=path,
            inputs=_arrays(spec.description.input),
            outputs=_arrays(spec.description.output),
            layers=tuple(_layer(proto, side) for proto in spec.neuralNetwork.layers),
            user_defined=dict(spec.description.metadata.userDefined),
        )
        _check_graph(package)
        _check_table(package)
    except UnknownContent as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}.") from None
    return package


def _check_model(spec: Model_pb2.Model) -> None:
    if spec.WhichOneof("Type") == "mlProgram":
        raise UnknownContent("it is an ML Program without its weight file: export it again")
    if spec.WhichOneof("Type") != "neuralNetwork":
        raise UnknownContent(
            f"it is a model of the kind '{spec.WhichOneof('Type')}', not a NeuralNetwork"
        )
    refuse_unknown_fields(spec)
    only(spec, "the model", "specificationVersion", "description", "neuralNetwork")
    only(spec.description, "its description", "input", "output", "metadata")
    only(spec.neuralNetwork, "its network", "layers", "arrayInputShapeMapping")
    if spec.specificationVersion != contract.SPECIFICATION_VERSION:
        raise UnknownContent(f"it has the specification version {spec.specificationVersion}")
    if spec.neuralNetwork.arrayInputShapeMapping != NeuralNetwork_pb2.EXACT_ARRAY_MAPPING:
        raise UnknownContent("its input shapes are not taken as they are (EXACT_ARRAY_MAPPING)")


def _arrays(protos: Any) -> dict[str, Feature]:
    found = read_features(protos)
    for proto in protos:
        only(proto.type, f"'{proto.name}'", "multiArrayType")
        if found[proto.name].dtype not in _DTYPES:
            raise UnknownContent(f"'{proto.name}' has the type {found[proto.name].dtype}")
    return found


def _layer(proto: Any, side: SideFile) -> Layer:
    where = f"layer '{proto.name}'"
    if proto.WhichOneof("layer") != "custom":
        raise UnknownContent(f"{where} is of the type '{proto.WhichOneof('layer')}'")
    only(proto, where, "name", "input", "output", "inputTensor", "outputTensor", "custom")
    only(proto.custom, where, "className", "parameters", "weights", "description")
    name = proto.custom.className
    if name not in contract.CLASSES:
        near = did_you_mean(name, contract.CLASSES)
        raise UnknownContent(f"{where} is of the class '{name}'{near}")
    kind = contract.CLASSES[name]
    of_side_file = contract.side_file_parameters(kind)
    in_side_file = any(parameter in of_side_file for parameter in proto.custom.parameters)
    expected = {**kind.parameters, **(of_side_file if in_side_file else {})}
    parameters = _parameters(proto.custom.parameters, expected, where)
    _check_parameters(parameters, where)
    if in_side_file:
        weights = _weights_beside(proto.custom, kind, parameters, side, where)
    else:
        weights = _weights_inside(proto.custom, kind, parameters, where)
    layer = Layer(
        name=proto.name,
        kind=kind,
        parameters={n: v for n, v in parameters.items() if n in kind.parameters},
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        weights=weights,
    )
    _check_shapes(proto, layer, where)
    return layer


def _parameters(protos: Any, expected: Mapping[str, str], where: str) -> dict[str, Any]:
    if missing := sorted(set(expected) - set(protos)):
        raise UnknownContent(f"{where} lacks the parameter {', '.join(missing)}")
    found = {}
    for name, proto in protos.items():
        if name not in expected:
            raise UnknownContent(
                f"{where} has the parameter '{name}'{did_you_mean(name, expected)}"
            )
        if proto.WhichOneof("value") != f"{expected[name]}Value":
            raise UnknownContent(
                f"{where}: parameter '{name}' is a {proto.WhichOneof('value')}, "
                f"not a {expected[name]}Value"
            )
        found[name] = getattr(proto, f"{expected[name]}Value")
    return found


def _check_parameters(p: Mapping[str, Any], where: str) -> None:
    """Refuse values that the contract gives no meaning."""
    if p["version"] != contract.VERSION:
        raise UnknownContent(
            f"{where} is of version {p['version']} of the contract; {contract.VERSION} is known"
        )
    for name, value in p.items():
        least = 0 if name in ("layer", "version") or name.endswith("_offset") else 1
        if type(value) is int and value < least:
            raise UnknownContent(f"{where}: parameter '{name}' is {value}")
        if type(value) is float and not 0 < value < np.inf:
            raise UnknownContent(f"{where}: parameter '{name}' is {value}")
    wrong = (
        ("logits" in p and p["logits"] not in ("last", "all"))
        or ("heads" in p and p["heads"] % p["kv_heads"])
        or ("heads" in p and p["layer"] >= p["layers"])
        or ("experts" in p and p["experts_per_token"] > p["experts"])
    )
    if wrong:
        raise UnknownContent(f"{where}: its parameters contradict each other: {dict(p)}")


def _weights_inside(
    custom: Any, kind: LayerClass, parameters: Mapping[str, Any], where: str
) -> Callable[[], list[np.ndarray]]:
    if len(custom.weights) != len(kind.entries):
        raise UnknownContent(
            f"{where} has {len(custom.weights)} weights, {len(kind.entries)} in the contract"
        )
    for entry, proto in zip(kind.entries, custom.weights, strict=True):
        field = _WEIGHT_FIELDS[entry.dtype]
        only(proto, f"{where}: weights entry {entry.name}", field)
        items = len(getattr(proto, field))
        nbytes = 4 * items if entry.dtype == "float32" else items
        _check_size(nbytes, contract.nbytes(entry, parameters), f"{where}: {entry.name}")

    def read() -> list[np.ndarray]:
        arrays = []
        for entry, proto in zip(kind.entries, custom.weights, strict=True):
            value = getattr(proto, _WEIGHT_FIELDS[entry.dtype])
            if entry.dtype == "float32":
                value = np.array(value, "<f4").tobytes()
            arrays.append(np.frombuffer(value, np.uint8))
        return arrays

    return read


def _weights_beside(
    custom: Any, kind: LayerClass, parameters: Mapping[str, Any], side: SideFile, where: str
) -> Callable[[], list[np.ndarray]]:
    if len(custom.weights):
        raise UnknownContent(f"{where} has weights both inside and in a side file")
    name, size, checksum = (parameters[n] for n in contract.SIDE_FILE_PARAMETERS)
    side.check(name, size, checksum)
    places = []
    for entry in kind.entries:
        offset, nbytes = (parameters[f"{entry.name}_{what}"] for what in ("offset", "bytes"))
        _check_size(nbytes, contract.nbytes(entry, parameters), f"{where}: {entry.name}")
        if offset % contract.SIDE_FILE_ALIGNMENT or offset + nbytes > size:
            raise UnknownContent(f"{where}: {entry.name} lies at {offset} of {size} bytes")
        places.append((offset, nbytes))
    return lambda: [side.read(name, offset, nbytes) for offset, nbytes in places]


def _check_size(actual: int, expected: int, what: str) -> None:
    if actual != expected:
        raise UnknownContent(f"{what} has {actual} bytes, {expected} by its parameters")


def _check_shapes(proto: Any, layer: Layer, where: str) -> None:
    """The shapes that the model states for Core ML's compiler are those of the contract."""
    for tensors, dimensions in (
        (proto.inputTensor, _input_shapes(layer)),
        (proto.outputTensor, layer.kind.outputs.values()),
    ):
        stated = [(tensor.rank, tuple(tensor.dimValue)) for tensor in tensors]
        shapes = [contract.shape(d, layer.parameters, -1) for d in dimensions]
        if stated != [(len(shape), shape) for shape in shapes]:
            raise UnknownContent(f"{where} states the shapes {stated}; the contract has {shapes}")


def _input_shapes(layer: Layer) -> list[contract.Shape]:
    shapes = list(layer.kind.inputs.values())
    if not layer.kind.one_input_per_layer:
        return shapes
    if layer.parameters["layers"] != len(layer.inputs):
        raise UnknownContent(
            f"layer '{layer.name}' has {len(layer.inputs)} inputs for "
            f"{layer.parameters['layers']} layers"
        )
    return shapes * len(layer.inputs)


def _check_graph(package: CustomLayerModel) -> None:
    """Each array between layers is made once, before it is used, with the shape it is used as."""
    if set(package.inputs) != {names.TOKENS, names.POSITION, names.KEY_CACHE, names.VALUE_CACHE}:
        raise UnknownContent(f"its inputs are {', '.join(package.inputs)}")
    made = {name: feature.pattern for name, feature in package.inputs.items()}
    for layer in package.layers:
        inputs = _shapes(layer, "inputs", layer.inputs, _input_shapes(layer))
        for name, shape in inputs.items():
            if made.get(name) != shape:
                found = f"is {list(made[name])}" if name in made else "no earlier layer makes"
                raise UnknownContent(
                    f"layer '{layer.name}' takes '{name}' as {list(shape)}, which {found}"
                )
        for name, shape in _shapes(
            layer, "outputs", layer.outputs, layer.kind.outputs.values()
        ).items():
            if name in made:
                raise UnknownContent(f"layer '{layer.name}' makes '{name}' a second time")
            made[name] = shape
    for name, feature in package.outputs.items():
        if made.get(name) != feature.pattern or feature.dtype != "float32":
            raise UnknownContent(f"no layer makes its output '{name}', {feature}")


def _shapes(
    layer: Layer, what: str, given: tuple[str, ...], shapes: Iterable[contract.Shape]
) -> dict[str, tuple[int, ...]]:
    numbers = [contract.shape(shape, layer.parameters, -1) for shape in shapes]
    if len(given) != len(numbers) or len(set(given)) != len(given):
        raise UnknownContent(f"layer '{layer.name}' has the {what} {', '.join(given)}")
    return dict(zip(given, numbers, strict=True))


def _check_table(package: CustomLayerModel) -> None:
    """Every head's table is that of the one embedding, and its name is the table's checksum."""
    embeddings, heads = package.layers_of(contract.EMBEDDING), package.layers_of(contract.HEAD)
    if len(embeddings) != 1 or len(heads) != 1:
        raise UnknownContent(f"it has {len(embeddings)} embeddings and {len(heads)} heads")
    key = hashlib.sha256()
    for entry in embeddings[0].weights():
        key.update(entry.data)
    for layer in (*embeddings, *heads):
        if layer.parameters["table"] != key.hexdigest():
            raise UnknownContent(f"layer '{layer.name}' names another table than the embedding's")
