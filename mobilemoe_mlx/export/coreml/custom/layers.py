"""The custom-layer form: a NeuralNetwork model whose every layer is a class of the app.

What the layers are is in contract.py and, for implementers, in coreml/README.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from coremltools.libmodelpackage import ModelPackage
from coremltools.proto import FeatureTypes_pb2, Model_pb2, NeuralNetwork_pb2

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.layouts import cast
from mobilemoe_mlx.checkpoint.tensor_file import Tensor, from_array
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.coreml import metadata, names
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.custom import side_file_writer
from mobilemoe_mlx.export.coreml.custom.contract import Entry, LayerClass
from mobilemoe_mlx.export.coreml.custom.model_parameters import model_parameters
from mobilemoe_mlx.export.coreml.disk_errors import disk_errors
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.int4_source import to_numpy
from mobilemoe_mlx.model import rope_periods

# Protobuf messages stay below 2 GiB. S (0.71 GB) and M (1.59 GB) fit with their weights inside.
MAX_INLINE_BYTES = 1_900_000_000

_FLOAT32 = FeatureTypes_pb2.ArrayFeatureType.FLOAT32
_INT32 = FeatureTypes_pb2.ArrayFeatureType.INT32


@dataclass(frozen=True)
class _Layer:
    """One layer as it will be written."""

    kind: LayerClass
    name: str
    parameters: Mapping[str, Any]
    weights: tuple[Tensor, ...]  # in the order of `kind.entries`
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def write_custom_layer_model(
    checkpoint: Checkpoint,
    options: ExportOptions,
    credit: metadata.Credits,
    package: Path,
    resources: Path,
) -> Model_pb2.Model:
    """Write `package` (.mlpackage) and, on request or above the limit, `resources`/weights.bin.

    Returns the model as written. A temporary file goes beside `package`. Raises OSError when the
    disk is full.
    """
    spec = build_custom_layer_model(
        checkpoint,
        context=options.context,
        prefill_block=options.prefill_block,
        logits=options.logits,
        side_folder=resources,
        max_inline_bytes=max_inline_bytes(options),
    )
    metadata.describe(spec, checkpoint, options, credit)
    model = package.with_name(f"{package.stem}.mlmodel")
    try:
        model.write_bytes(spec.SerializeToString(deterministic=True))
        with disk_errors():
            ModelPackage(str(package)).setRootModel(
                str(model), "model.mlmodel", "com.apple.CoreML", "CoreML Model Specification"
            )
    finally:
        model.unlink(missing_ok=True)
    return spec


def max_inline_bytes(options: ExportOptions) -> int:
    """The most bytes of weights that an export keeps inside its model."""
    return 0 if options.weights_beside else MAX_INLINE_BYTES


def build_custom_layer_model(
    checkpoint: Checkpoint,
    *,
    context: int,
    prefill_block: int,
    logits: Literal["last", "all"],
    side_folder: Path,
    max_inline_bytes: int = MAX_INLINE_BYTES,
) -> Model_pb2.Model:
    """The model of `checkpoint`, whose tensors are in the published INT4 layout.

    Weights lie in the layers as long as they have at most `max_inline_bytes` together; else all of
    them go into `side_folder`/weights.bin, and the layers say where. Tensors are read one at a time
    and, inside the model, kept as their bytes.
    """
    args = checkpoint.args
    layers = list(_layers(checkpoint, context, logits))
    spec = Model_pb2.Model(specificationVersion=contract.SPECIFICATION_VERSION)
    spec.neuralNetwork.arrayInputShapeMapping = NeuralNetwork_pb2.EXACT_ARRAY_MAPPING
    _describe(spec, args, context, prefill_block, logits)
    if sum(tensor.nbytes for layer in layers for tensor in layer.weights) <= max_inline_bytes:
        for layer in layers:
            custom = _add(spec, layer, {})
            for tensor in layer.weights:
                _fill(custom.weights.add(), to_numpy(tensor))
    else:
        for layer, places in zip(layers, _write_side_file(layers, side_folder), strict=True):
            _add(spec, layer, places)
    return spec


def _write_side_file(layers: list[_Layer], folder: Path) -> list[dict[str, Any]]:
    """Write all weights; -> each layer's parameters that say where its own lie."""
    found: list[dict[str, Any]] = []
    with side_file_writer.SideFileWriter(folder / side_file_writer.NAME) as file:
        for layer in layers:
            places: dict[str, Any] = {}
            for entry, tensor in zip(layer.kind.entries, layer.weights, strict=True):
                place = file.add(to_numpy(tensor))
                places[f"{entry.name}_offset"] = place.offset
                places[f"{entry.name}_bytes"] = place.nbytes
            found.append(places)
    whole = {
        "weights_file": side_file_writer.NAME,
        "weights_bytes": file.nbytes,
        "weights_sha256": file.sha256,
    }
    return [{**whole, **places} if places else {} for places in found]


def _layers(checkpoint: Checkpoint, context: int, logits: str) -> Iterator[_Layer]:
    args = checkpoint.args
    of_model = {"version": contract.VERSION, "context": context, **model_parameters(args)}

    def layer(
        kind: LayerClass,
        name: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        **own: Any,
    ) -> _Layer:
        values = {**of_model, **own}
        parameters = {name: values[name] for name in kind.parameters}
        weights = tuple(_weight(entry, checkpoint, parameters) for entry in kind.entries)
        return _Layer(kind, name, parameters, weights, inputs, outputs)

    table = _table_key(checkpoint)
    yield layer(contract.EMBEDDING, "embedding", (names.TOKENS,), ("embedded",), table=table)
    residual = "embedded"
    for index in range(args.num_hidden_layers):
        attended = names.layer(index, "attended")
        yield layer(
            contract.ATTENTION,
            names.layer(index, "attention"),
            (residual, names.POSITION, names.KEY_CACHE, names.VALUE_CACHE),
            (attended, names.layer(index, names.NEW_KEYS), names.layer(index, names.NEW_VALUES)),
            layer=index,
        )
        residual = names.hidden(index)
        name = names.layer(index, "moe")
        yield layer(contract.EXPERTS, name, (attended,), (residual,), layer=index)
    for name in (names.NEW_KEYS, names.NEW_VALUES):
        inputs = tuple(names.layer(index, name) for index in range(args.num_hidden_layers))
        yield layer(contract.CACHE_ROWS, f"{name}_of_all", inputs, (name,))
    yield layer(contract.HEAD, "head", (residual,), (names.LOGITS,), table=table, logits=logits)


def _weight(entry: Entry, checkpoint: Checkpoint, parameters: Mapping[str, Any]) -> Tensor:
    if not entry.tensor:  # the periods of the rotation
        return from_array(mx.array(rope_periods(checkpoint.args)))
    tensor = checkpoint.tensors[entry.tensor_name(parameters)]
    return cast(tensor, "F32") if entry.dtype == "float32" else tensor


def _table_key(checkpoint: Checkpoint) -> str:
    key = hashlib.sha256()
    for entry in contract.EMBEDDING.entries:
        key.update(to_numpy(_weight(entry, checkpoint, {})).data)
    return key.hexdigest()


def _add(
    spec: Model_pb2.Model, layer: _Layer, places: Mapping[str, Any]
) -> NeuralNetwork_pb2.CustomLayerParams:
    """Append `layer` without its weights."""
    kind, parameters = layer.kind, {**layer.parameters, **places}
    for entry, tensor in zip(kind.entries, layer.weights, strict=True):
        if tensor.shape != contract.shape(entry.shape, parameters):
            raise ValueError(f"{layer.name}: {entry.name} has the shape {tensor.shape}")
    out = spec.neuralNetwork.layers.add(name=layer.name, input=layer.inputs, output=layer.outputs)
    inputs = list(kind.inputs.values()) * (len(layer.inputs) if kind.one_input_per_layer else 1)
    for tensors, shapes in ((out.inputTensor, inputs), (out.outputTensor, kind.outputs.values())):
        for dimensions in shapes:
            sizes = contract.shape(dimensions, parameters, tokens=-1)  # -1: unknown
            tensors.add(rank=len(sizes), dimValue=sizes)
    out.custom.className = kind.name
    out.custom.description = f"Contract version {contract.VERSION}: coreml/README.md"
    fields = {**kind.parameters, **contract.side_file_parameters(kind)}
    for name, value in parameters.items():
        setattr(out.custom.parameters[name], f"{fields[name]}Value", value)
    return out.custom


def _fill(weight: NeuralNetwork_pb2.WeightParams, array: np.ndarray) -> None:
    if array.dtype == np.uint8:
        weight.rawValue = array.tobytes()
    elif array.dtype == np.float16:
        weight.float16Value = array.tobytes()
    else:
        weight.floatValue.extend(array.reshape(-1).tolist())


def _describe(
    spec: Model_pb2.Model, args: ModelArgs, context: int, prefill_block: int, logits: str
) -> None:
    """Declare inputs and outputs; the number of tokens is any from 1 to `prefill_block`."""
    any_count = (1, prefill_block)
    layers, heads, width = args.num_hidden_layers, args.num_key_value_heads, args.head_dim
    cache = (layers, heads, context, width)
    rows = (layers, heads, any_count, width)
    inputs, outputs = spec.description.input, spec.description.output
    features = (
        (inputs, names.TOKENS, _INT32, (any_count,)),
        (inputs, names.POSITION, _INT32, (1,)),
        (inputs, names.KEY_CACHE, _FLOAT32, cache),
        (inputs, names.VALUE_CACHE, _FLOAT32, cache),
        (outputs, names.LOGITS, _FLOAT32, (1 if logits == "last" else any_count, args.vocab_size)),
        (outputs, names.NEW_KEYS, _FLOAT32, rows),
        (outputs, names.NEW_VALUES, _FLOAT32, rows),
    )
    for place, name, dtype, shape in features:
        feature = place.add(name=name)
        array = feature.type.multiArrayType
        array.dataType = dtype
        ranges = [size if isinstance(size, tuple) else (size, size) for size in shape]
        array.shape.extend(low for low, _ in ranges)
        if any_count in shape:
            for low, high in ranges:
                array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
