"""The folder beside a package: what an app needs besides the model, and the manifest of it all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from coremltools.proto import Model_pb2

from mobilemoe_mlx import files
from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import INT4_QUANTIZATION
from mobilemoe_mlx.export import manifest
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.manifest import list_files
from mobilemoe_mlx.mlpackage.features import read_features

FORMAT = "mobilemoe-coreml"  # of the manifest
_RESOURCES = "-resources"


def resources_folder(package: Path) -> Path:
    """The resources folder of `package`: S.mlpackage has S-resources beside it."""
    return package.with_name(f"{package.stem}{_RESOURCES}")


def package_of(resources: Path) -> Path:
    """The package that a resources folder lies beside."""
    return resources.with_name(f"{resources.name.removesuffix(_RESOURCES)}.mlpackage")


def write_manifest(
    package: Path,
    folder: Path,
    spec: Model_pb2.Model,
    checkpoint: Checkpoint,
    options: ExportOptions,
) -> None:
    """Write `folder`/manifest.json: functions, sizes, settings, and a checksum of every file.

    `package` and `folder` lie side by side; file names in the manifest are relative to that place.
    """
    listed = list_files(package.parent, (package, folder))
    args = checkpoint.args
    # Custom layers are given float32 caches; the program's states are float16.
    cache_type = "float32" if options.moe == "custom-layer" else "float16"
    cache = account(args, options.context).kv_bytes_per_token[cache_type] * options.context
    weights = (".bin", ".mlmodel") if options.moe == "custom-layer" else (".bin",)
    content = {
        "format": FORMAT,
        "version": manifest.VERSION,
        "package": package.name,
        "form": options.moe,
        "target": options.oldest_system,
        "context": options.context,
        "prefill_block": options.prefill_block,
        "logits": options.logits,
        "quantization": INT4_QUANTIZATION,
        "tokens": {"bos": args.bos_token_id, "eos": list(checkpoint.end_token_ids())},
        "functions": _functions(spec),
        "sizes": {
            "package": sum(f["bytes"] for n, f in listed.items() if n.startswith(package.name)),
            "weights": sum(f["bytes"] for n, f in listed.items() if n.endswith(weights)),
            "checkpoint_weights": sum(t.nbytes for t in checkpoint.tensors.values()),
            "key_value_cache": cache,
        },
        "files": listed,
    }
    files.write_json(folder / manifest.NAME, content)


def _functions(spec: Model_pb2.Model) -> dict[str, Any]:
    description = spec.description
    described = {f.name: f for f in description.functions} or {"main": description}
    return {
        name: {
            kind: {n: asdict(f) for n, f in read_features(features).items()}
            for kind, features in (
                ("inputs", function.input),
                ("outputs", function.output),
                ("states", function.state),
            )
        }
        for name, function in described.items()
    }
