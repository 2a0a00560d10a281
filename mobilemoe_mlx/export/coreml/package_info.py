"""What an exported Core ML package holds and costs, read from the package without running it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from coremltools.proto import Model_pb2

from mobilemoe_mlx.accounting.cost import Accounting, account
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export import manifest
from mobilemoe_mlx.export.coreml import metadata, names
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.custom import side_file_writer
from mobilemoe_mlx.export.coreml.resources import FORMAT, resources_folder
from mobilemoe_mlx.files import parse_json, resolved
from mobilemoe_mlx.mil.program import (
    Constant,
    Operation,
    Package,
    TensorType,
    read_package,
)
from mobilemoe_mlx.mlpackage.features import Feature, read_features
from mobilemoe_mlx.mlpackage.model_file import model_file, read_spec

# Kinds of weights, in the order of the table.
LINEARS = "INT4 linears and embedding"
EXPERTS = "packed INT4 experts"
SCALES = "float16 scales"
FLOATS = "float32 norms, routers and biases"
TABLES = "rotation tables"
OTHER = "other constants"
OVERHEAD = "headers and padding"
BESIDE = "weights.bin in the resources"
_KINDS = (LINEARS, EXPERTS, SCALES, FLOATS, TABLES, OTHER)


@dataclass(frozen=True)
class FunctionInfo:
    """One function; a custom-layer package has one, "main"."""

    name: str
    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    states: dict[str, Feature]
    operations: dict[str, int]  # type -> count, constants apart; custom layers by their class
    computed: dict[str, int]  # type of the result -> operations; empty for custom layers


@dataclass(frozen=True)
class Weights:
    """Constants of one kind, each counted once however many functions use it."""

    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class ManifestInfo:
    """The manifest beside the package, as far as file names and sizes go (not checksums)."""

    path: Path
    files: int
    missing: tuple[str, ...]
    resized: tuple[str, ...]  # files of another size than listed


@dataclass(frozen=True)
class PackageInfo:
    """A package of either form. Bytes are those on disk unless said otherwise."""

    path: Path
    form: str  # "core-ops" or "custom-layer"
    target: str  # oldest system: "iOS18"
    specification_version: int
    exporter: str
    context: int
    prefill_block: int
    logits: str  # of a prefill block: "last" or "all"
    default_function: str
    functions: tuple[FunctionInfo, ...]
    args: ModelArgs
    accounting: Accounting  # at the package's context
    quantization: dict[str, Any]
    program_bytes: int  # of model.mlmodel without the weights that lie in it
    weights: tuple[Weights, ...]
    package_bytes: int
    key_value_cache_bytes: int  # in memory: float16 states, or float32 for custom layers
    manifest: ManifestInfo | None

    @property
    def weight_bytes(self) -> int:
        """All weights on disk."""
        return sum(kind.bytes for kind in self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        record = dataclasses.asdict(self)
        del record["args"], record["accounting"]
        record["path"] = str(self.path)
        if self.manifest is not None:
            record["manifest"]["path"] = str(self.manifest.path)
        return {
            **record,
            "weight_bytes": self.weight_bytes,
            "config": self.args.to_dict(),
            **dataclasses.asdict(self.accounting),
        }


def describe_package(path: str | Path) -> PackageInfo:
    """Describe an exported package.

    Raises UserError for a folder that is no Core ML package, one that `mobilemoe export` did not
    write, and a damaged package or manifest.
    """
    path = resolved(path)
    model = model_file(path)
    spec = read_spec(model)
    fields = metadata.user_defined(spec.description.metadata.userDefined)
    try:
        form, target, logits = fields["form"], fields["target"], fields["logits"]
        context, block = int(fields["context"]), int(fields["prefill_block"])
        quantization = parse_json(fields["quantization"], f"The quantization in {path}")
        config = parse_json(fields["config"], f"The model's description in {path}")
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} is a Core ML package, but not one that `mobilemoe export coreml` wrote: its "
            f"metadata has no usable {metadata.PREFIX}* fields ({error})."
        ) from None
    args = ModelArgs.from_dict(config)
    if form == "core-ops":
        package = read_package(path)
        functions = tuple(_function(package, name) for name in package.signatures)
        default = package.default_function
        weights = _program_weights(package, args)
        program_bytes = model.stat().st_size
        cache_type = "float16"
    else:
        functions, default = (_custom_layer_function(spec),), "main"
        inside, beside = _layer_weights(spec), _side_file(path)
        if not inside and not beside:
            raise UserError(
                f"{path} has its weights in {resources_folder(path).name}/{side_file_writer.NAME} "
                "beside it, and that is missing."
            )
        weights = (*inside, *beside)
        program_bytes = model.stat().st_size - sum(kind.bytes for kind in inside)
        cache_type = "float32"
    return PackageInfo(
        path=path,
        form=form,
        target=target,
        specification_version=spec.specificationVersion,
        exporter=spec.description.metadata.versionString,
        context=context,
        prefill_block=block,
        logits=logits,
        default_function=default,
        functions=functions,
        args=args,
        accounting=account(args, context),
        quantization=quantization,
        program_bytes=program_bytes,
        weights=weights,
        package_bytes=sum(p.stat().st_size for p in path.rglob("*") if p.is_file()),
        key_value_cache_bytes=account(args, context).kv_bytes_per_token[cache_type] * context,
        manifest=_manifest(path),
    )


def _function(package: Package, name: str) -> FunctionInfo:
    signature, function = package.signatures[name], package.functions[name]
    computing = [o for o in function.operations if not _is_constant(o.type)]
    return FunctionInfo(
        name=name,
        **{
            kind: {
                name: Feature(t.dtype, t.shape, t.shape)
                for name, t in getattr(signature, kind).items()
            }
            for kind in ("inputs", "outputs", "states")
        },
        operations=_counted(o.type for o in computing),
        computed=_counted(o.outputs[0][1].dtype for o in computing if o.outputs),
    )


def _is_constant(operation: str) -> bool:
    return operation == "const" or operation.startswith("constexpr_")


def _counted(items: Iterable[str]) -> dict[str, int]:
    """Item -> count, the most frequent first and equals by name."""
    return dict(sorted(Counter(items).items(), key=lambda item: (-item[1], item[0])))


def _program_weights(package: Package, args: ModelArgs) -> tuple[Weights, ...]:
    if package.weights is None:
        raise UserError(f"{package.path} has no weight file: export it again.")
    forms = {constant.name: constant.form for constant in names.constants(args)}
    kinds: dict[int, str] = {}  # place in the weight file -> kind
    for function in package.functions.values():
        for operation in function.operations:
            if _is_constant(operation.type):
                kinds |= {place: _kind(operation, c, forms) for place, c in _stored(operation)}
    sizes: dict[str, list[int]] = {kind: [] for kind in _KINDS}
    for place, kind in kinds.items():
        sizes[kind].append(package.weights.blob(place).nbytes)
    found = [Weights(kind, len(sizes[kind]), sum(sizes[kind])) for kind in _KINDS if sizes[kind]]
    rest = package.weights.path.stat().st_size - sum(kind.bytes for kind in found)
    return (*found, Weights(OVERHEAD, package.weights.blob_count, rest))


def _stored(operation: Operation) -> Iterable[tuple[int, Constant]]:
    """The constants of `operation` that lie in the weight file, with their places there."""
    for argument in (*operation.attributes.values(), *chain(*operation.inputs.values())):
        if isinstance(argument, Constant) and argument.blob is not None:
            yield argument.blob, argument


def _kind(operation: Operation, constant: Constant, forms: Mapping[str, str]) -> str:
    if operation.type != "const":  # a linear: codes and scales
        is_codes = isinstance(constant.type, TensorType) and constant.type.dtype == "int4"
        return LINEARS if is_codes else SCALES
    name = operation.outputs[0][0]
    if name in (names.ROPE_COS, names.ROPE_SIN):
        return TABLES
    return {"bytes": EXPERTS, "scale": SCALES, "float32": FLOATS}.get(forms.get(name, ""), OTHER)


def _custom_layer_function(spec: Model_pb2.Model) -> FunctionInfo:
    described = spec.description
    return FunctionInfo(
        name="main",
        inputs=read_features(described.input),
        outputs=read_features(described.output),
        states={},
        operations=_counted(
            layer.custom.className or str(layer.WhichOneof("layer"))
            for layer in spec.neuralNetwork.layers
        ),
        computed={},
    )


def _layer_weights(spec: Model_pb2.Model) -> tuple[Weights, ...]:
    """The weights that lie in the layers."""
    sizes: dict[str, list[int]] = {kind: [] for kind in _KINDS}
    for layer in spec.neuralNetwork.layers:
        layer_class = contract.CLASSES.get(layer.custom.className)
        entries = layer_class.entries if layer_class else ()
        for entry, weight in zip(entries, layer.custom.weights, strict=False):
            size = len(weight.rawValue) + len(weight.float16Value) + 4 * len(weight.floatValue)
            sizes[_kind_of_entry(entry)].append(size)
    return tuple(Weights(kind, len(f), sum(f)) for kind, f in sizes.items() if f)


def _kind_of_entry(entry: contract.Entry) -> str:
    if entry.dtype == "uint8":
        return EXPERTS if "experts" in entry.shape else LINEARS
    if not entry.tensor:  # the periods of the rotation
        return TABLES
    return SCALES if entry.dtype == "float16" else FLOATS


def _side_file(package: Path) -> tuple[Weights, ...]:
    path = resources_folder(package) / side_file_writer.NAME
    return (Weights(BESIDE, 1, path.stat().st_size),) if path.is_file() else ()


def _manifest(package: Path) -> ManifestInfo | None:
    path = resources_folder(package) / manifest.NAME
    if not path.is_file():
        return None
    sizes = {n: f.nbytes for n, f in manifest.read_manifest(path, FORMAT).files.items()}
    paths = {name: package.parent / name for name in sizes}
    missing = tuple(name for name, p in paths.items() if not p.is_file())
    resized = tuple(
        n for n, p in paths.items() if n not in missing and p.stat().st_size != sizes[n]
    )
    return ManifestInfo(path, len(sizes), missing, resized)
