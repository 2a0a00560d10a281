"""The folder beside a package: what an app needs besides the model, and the manifest of it all."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coremltools.proto import Model_pb2

from mobilemoe_mlx import end_tokens, files
from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.folder import copy_companions, published_config
from mobilemoe_mlx.config import INT4_QUANTIZATION
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export import manifest
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.manifest import list_files
from mobilemoe_mlx.mlpackage.features import read_features
from mobilemoe_mlx.tokenizer import written_chat_template
from mobilemoe_mlx.tokenizer_config import plain_settings

FORMAT = "mobilemoe-coreml"  # of the manifest
_RESOURCES = "-resources"


def resources_folder(package: Path) -> Path:
    """The resources folder of `package`: S.mlpackage has S-resources beside it."""
    return package.with_name(f"{package.stem}{_RESOURCES}")


def package_of(resources: Path) -> Path:
    """The package that a resources folder lies beside."""
    return resources.with_name(f"{resources.name.removesuffix(_RESOURCES)}.mlpackage")


def write_resources(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, chat template, generation settings, licence and model card into `folder`.

    tokenizer_config.json becomes one by which tokenizer.json decides alone (`plain_settings`), and
    config.json and generation_config.json name every end of a generation (`end_tokens`). Raises
    UserError for a file that is not the JSON object that an app will need.
    """
    copy_companions(checkpoint.folder, folder, end_tokens.GENERATION_CONFIG, "README.md")
    for name in ("tokenizer.json", end_tokens.GENERATION_CONFIG):
        if (folder / name).is_file():
            _read_object(folder / name)
    args = dataclasses.replace(checkpoint.args, eos_token_id=checkpoint.end_token_ids())
    config = published_config(args, checkpoint.config)
    files.write_json(folder / "config.json", config)
    files.write_json(
        folder / end_tokens.GENERATION_CONFIG, end_tokens.generation_config(folder, config)
    )
    settings_file = folder / "tokenizer_config.json"
    if settings_file.is_file() or (folder / "tokenizer.json").is_file():
        settings = _read_object(settings_file) if settings_file.is_file() else {}
        files.write_json(settings_file, plain_settings(settings))
        template = written_chat_template(checkpoint.folder)
        if isinstance(template, dict):
            template = template.get("default")
        if template is not None and not (folder / "chat_template.jinja").exists():
            files.write(folder / "chat_template.jinja", template.encode())


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


def _read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that an app will need as an object."""
    content = files.parse_json(files.read_text(path), f"{path.name} of the checkpoint")
    if not isinstance(content, dict):
        raise UserError(f"{path.name} of the checkpoint is not a JSON object.")
    return content
