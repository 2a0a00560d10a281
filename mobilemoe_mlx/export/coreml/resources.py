"""The folder beside a package: what an app needs besides the model, and the manifest of it all."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coremltools.proto import Model_pb2

from mobilemoe_mlx.accounting import account
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.folder import COMPANION_FILES, published_config
from mobilemoe_mlx.config import INT4_QUANTIZATION
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.mlpackage.features import read_features

MANIFEST = "manifest.json"
FORMAT, VERSION = "mobilemoe-coreml", 1


def resources_name(package: Path) -> str:
    """The name of the resources folder of `package`: S.mlpackage has S-resources beside it."""
    return f"{package.stem}-resources"


def write_resources(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, chat template, generation settings, licence and model card into `folder`.

    tokenizer_config.json is told not to clean up spaces, which would eat the one in "SELECT ?s" and
    is what swift-transformers does unless told otherwise; and the class of a tokenizer that its
    tokenizer.json describes whole, since swift-transformers refuses names that it does not know.
    Raises UserError for a file that is not the JSON object that an app will need.
    """
    for pattern in (*COMPANION_FILES, "README.md"):
        for path in sorted(checkpoint.folder.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    args = checkpoint.args
    _write_json(folder / "config.json", published_config(args, checkpoint.config))
    if not (folder / "generation_config.json").exists():
        generation = {"bos_token_id": args.bos_token_id, "eos_token_id": list(args.eos_token_id)}
        _write_json(folder / "generation_config.json", generation)
    for name in ("tokenizer.json", "generation_config.json"):
        if (folder / name).exists():
            _read_object(folder / name)
    settings_file = folder / "tokenizer_config.json"
    if settings_file.is_file() or (folder / "tokenizer.json").is_file():
        settings = _read_object(settings_file) if settings_file.is_file() else {}
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        _write_json(settings_file, settings | {"clean_up_tokenization_spaces": False})
        template = settings.get("chat_template")
        if isinstance(template, str) and not (folder / "chat_template.jinja").exists():
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


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
    root = package.parent
    paths = sorted(p for top in (package, folder) for p in top.rglob("*") if p.is_file())
    files: dict[str, dict[str, Any]] = {
        str(path.relative_to(root)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }
    args = checkpoint.args
    # Custom layers are given float32 caches; the program's states are float16.
    cache_type = "float32" if options.moe == "custom-layer" else "float16"
    cache = account(args, options.context).kv_bytes_per_token[cache_type] * options.context
    weights = (".bin", ".mlmodel") if options.moe == "custom-layer" else (".bin",)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "package": package.name,
        "form": options.moe,
        "target": options.oldest_system,
        "context": options.context,
        "prefill_block": options.prefill_block,
        "logits": options.logits,
        "quantization": INT4_QUANTIZATION,
        "tokens": {"bos": args.bos_token_id, "eos": list(args.eos_token_id)},
        "functions": _functions(spec),
        "sizes": {
            "package": sum(f["bytes"] for n, f in files.items() if n.startswith(package.name)),
            "weights": sum(f["bytes"] for n, f in files.items() if n.endswith(weights)),
            "checkpoint_weights": sum(t.nbytes for t in checkpoint.tensors.values()),
            "key_value_cache": cache,
        },
        "files": files,
    }
    _write_json(folder / MANIFEST, manifest)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} of the checkpoint is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} of the checkpoint is not a JSON object.")
    return content


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
