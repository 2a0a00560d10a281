"""Write a model folder: config, shards with their index, tokenizer; whole, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, transformers_model
from mobilemoe_mlx.all_or_none import whole_folder
from mobilemoe_mlx.checkpoint.check import INDEX_FILE
from mobilemoe_mlx.checkpoint.tensor_file import Tensor, plan_shards, write_file
from mobilemoe_mlx.config import INT4_FORMAT, ModelArgs
from mobilemoe_mlx.config_spelling import without_other_spellings
from mobilemoe_mlx.end_tokens import GENERATION_CONFIG, generation_config
from mobilemoe_mlx.errors import UserError

MAX_SHARD_BYTES = 5_000_000_000  # the size Hugging Face repositories are cut at

# What belongs to a tokenizer, whatever model it is used with, copied as it is. A model has these,
# its weights, config.json and generation_config.json.
COMPANION_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "LICENSE*",
    "USE_POLICY*",
)


def published_config(args: ModelArgs, original: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json's content for a published layout.

    Fields of `original` that this package does not know stay; when it already describes `args` it
    stays as it is.
    """
    config = dict(original or {})
    config.pop("model_file", None)
    if config.get("auto_map") == transformers_model.AUTO_MAP:
        del config["auto_map"]  # its files belong to the folder for transformers
    if (config.get("quantization") or {}).get("format") != INT4_FORMAT:
        config.pop("quantization", None)
    if original is None or ModelArgs.from_dict(config) != args:
        config.pop("quantization", None)
        config = without_other_spellings(config) | args.to_dict()
    return config


def write_model_folder(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    companions: str | Path | None = None,
    settings: str | Path | None = None,
    extra_files: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write config.json, generation_config.json, the tensors and copies of `companions`' files.

    `settings`: the model's folder, whose generation_config.json is copied if it has one. One tensor
    is in memory at a time. `metadata` goes into the safetensors headers (default: {"format": "pt"},
    as published). Raises UserError when the folder exists and is not empty (unless `overwrite` and
    it is a model folder), or cannot be written; it is then as it was.
    """
    if max_shard_bytes < 1:
        raise UserError(f"The shard size is {max_shard_bytes} bytes; it must be positive.")
    target = files.resolved(folder)
    with whole_folder(target) as new:
        check_target(target, overwrite)
        # First, since it may fail soonest.
        if companions is not None:
            copy_companions(files.user_path(companions), new)
        files.write_json(new / "config.json", config)
        if (
            settings is not None
            and (path := files.user_path(settings) / GENERATION_CONFIG).exists()
        ):
            files.copy(path, new / GENERATION_CONFIG)
        else:
            files.write_json(new / GENERATION_CONFIG, generation_config(None, dict(config)))
        for name, text in (extra_files or {}).items():
            (new / name).write_text(text, encoding="utf-8")
        shards = plan_shards(tensors, max_shard_bytes)
        for file, shard in shards.items():
            write_file(new / file, shard, metadata or {"format": "pt"})
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
                "weight_map": {name: file for file, shard in shards.items() for name in shard},
            }
            files.write_json(new / INDEX_FILE, index)


def copy_companions(source: Path, target: Path, *more: str) -> None:
    """Copy the files of a tokenizer, and those of the patterns `more`."""
    for pattern in (*COMPANION_FILES, *more):
        for path in files.find(source, pattern):
            files.copy(path, target / path.name)


def check_target(folder: str | Path, overwrite: bool) -> None:
    """Raise UserError where `write_model_folder` would refuse `folder`; before the work starts."""
    target = files.resolved(folder)
    files.output_folder(target.parent)
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file: choose another name for the folder.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{target} is not empty: choose another folder, or replace this one (--overwrite)."
        )
    if not (target / "config.json").is_file():
        raise UserError(
            f"{target} is not empty and not a model folder (it has no config.json), so it is not "
            "overwritten: choose another folder."
        )
