"""Rewrite a checkpoint folder in another layout or other shards, one tensor at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mobilemoe_mlx import files, transformers_model
from mobilemoe_mlx.checkpoint import layouts
from mobilemoe_mlx.checkpoint.check import Checkpoint, check_scales, open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.checkpoint.folder import (
    MAX_SHARD_BYTES,
    check_target,
    published_config,
    write_model_folder,
)
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.settings_files import settings_files
from mobilemoe_mlx.config import MLX_QUANTIZATION, ScaleRule
from mobilemoe_mlx.config_spelling import without_other_spellings
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.files import resolved
from mobilemoe_mlx.int4_rounding import as_quantized

MODEL_FILE = "mobilemoe_model.py"

# What mlx-lm's `model_file` mechanism imports. It holds no model: that would be a second copy.
# mlx-lm runs it before it loads the tokenizer, which `register` makes possible.
_MODEL_FILE_TEXT = '''"""Where mlx-lm's commands find the model: in the package mobilemoe-mlx."""

try:
    from mobilemoe_mlx.model import Model, ModelArgs
    from mobilemoe_mlx.tokenizer_config import register
except ImportError as error:
    raise ImportError(
        "This model needs the package mobilemoe-mlx. Install it where mlx-lm runs: "
        "pip install . in the mobilemoe-mlx checkout"
    ) from error

register()

__all__ = ["Model", "ModelArgs"]
'''


class Converted(NamedTuple):
    """What was written."""

    layout: Layout
    tensors: int
    nbytes: int  # of the tensors


def convert(
    source: str | Path,
    output: str | Path,
    *,
    to: Literal["published", "mlx", "transformers"] = "published",
    quantize: bool = False,
    rule: ScaleRule = "unclipped",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> Converted:
    """Rewrite the checkpoint folder `source` as `output`, exactly, holding one tensor at a time.

    `to`: "published" (from either INT4 form, or BF16); "mlx", a folder for mlx-lm's own commands;
    or "transformers", the published layout with the Python files by which transformers reads it.
    `load` reads all three. `quantize` first rounds a BF16 checkpoint to nearest INT4, which is the
    one lossy step, with the scales of `rule` (`int4.quantize`). Raises UserError for a source with
    anything wrong, before anything is written (to be rounded, its numbers must be finite), and when
    `output` is `source`, not empty (unless `overwrite`) or cannot be written.
    """
    checkpoint = open_checkpoint(source)
    check_apart(output, [source])
    check_target(output, overwrite)
    check_scales(checkpoint)
    if quantize:
        if checkpoint.layout is not Layout.FLOAT:
            raise UserError(f"{source} is INT4 already: convert it without quantising.")
        check_finite(checkpoint)
        checkpoint = published_int4(checkpoint, rule)
    config = published_config(checkpoint.args, checkpoint.config)
    metadata = checkpoint.metadata
    extra_files = {}
    if to == "mlx":
        tensors = layouts.to_mlx(checkpoint.tensors)
        config |= _mlx_config(checkpoint)
        metadata = {**metadata, "format": "mlx"}
        extra_files[MODEL_FILE] = _MODEL_FILE_TEXT
        if (path := checkpoint.folder / "tokenizer_config.json").is_file():
            from mobilemoe_mlx.tokenizer_config import plain_settings  # transformers is slow

            settings = files.read_json(path)
            if (plain := plain_settings(settings)) != settings:
                extra_files[path.name] = files.json_text(plain)
    elif checkpoint.layout is Layout.MLX_INT4 or metadata.get("format") == "mlx":
        tensors = layouts.to_published(checkpoint.tensors)
        metadata = {**metadata, "format": "pt"}
    else:
        tensors = checkpoint.tensors
    if to == "transformers":
        tensors = {layouts.published_name(name): tensor for name, tensor in tensors.items()}
        metadata = {**metadata, "format": "pt"}  # without which transformers refuses the file
        config = _transformers_config(checkpoint, config)
        extra_files = transformers_model.model_files() | settings_files(checkpoint, config)
    write_model_folder(
        output,
        config,
        tensors,
        metadata=metadata,
        companions=source,
        settings=source,
        extra_files=extra_files,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
    )
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return Converted(layouts.layout_of(tensors), len(tensors), nbytes)


def published_int4(checkpoint: Checkpoint, rule: ScaleRule = "unclipped") -> Checkpoint:
    """A checkpoint of any layout with its tensors under the published INT4 names and forms.

    One of BF16 is rounded to nearest, which loses, with the scales of `rule`
    (`int4.quantize`); the others are exact. Nothing is computed until a tensor is read.
    """
    if checkpoint.layout is Layout.FLOAT:
        tensors = layouts.rounded(checkpoint.tensors, rule)
    elif checkpoint.layout is Layout.MLX_INT4:
        tensors = layouts.to_published(checkpoint.tensors)
    else:
        tensors = checkpoint.tensors
    args = as_quantized(checkpoint.args)
    return dataclasses.replace(checkpoint, args=args, layout=Layout.INT4, tensors=tensors)


def _mlx_config(checkpoint: Checkpoint) -> dict[str, Any]:
    config: dict[str, Any] = {"model_file": MODEL_FILE}
    if checkpoint.layout is not Layout.FLOAT:
        config["quantization"] = dict(MLX_QUANTIZATION)
    return config


def _transformers_config(checkpoint: Checkpoint, config: dict[str, Any]) -> dict[str, Any]:
    """`config` with every published field under its name, and what names the Python files."""
    args = dataclasses.replace(checkpoint.args, eos_token_id=checkpoint.end_token_ids())
    config = without_other_spellings(config) | args.to_dict()
    config.pop("quantization_config", None)  # by which transformers would look for a quantiser
    return config | {"auto_map": dict(transformers_model.AUTO_MAP)}


def check_apart(output: str | Path, sources: Iterable[str | Path]) -> None:
    """Raise UserError where the folder `output` is one of `sources`, lies in one or contains one.

    Writing it would replace what is read, or add to it.
    """
    output = resolved(output)
    for source in map(resolved, sources):
        if source == output:
            raise UserError(f"{output} is itself what is read: choose another folder.")
        if source.is_relative_to(output):
            raise UserError(f"{output} contains the source {source}: choose another folder.")
        if output.is_relative_to(source):
            raise UserError(
                f"{output} is inside {source}, which is read: choose a place outside that folder."
            )
