"""Export a checkpoint as a folder for ONNX Runtime and onnxruntime-genai: whole, or not at all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from mobilemoe_mlx import files
from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.all_or_none import whole_folder
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.rewrite import check_apart
from mobilemoe_mlx.config import INT4_QUANTIZATION
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.companions import write_companions
from mobilemoe_mlx.export.int4_source import open_source
from mobilemoe_mlx.export.manifest import list_files
from mobilemoe_mlx.export.onnx.added_error import AddedError, added_error
from mobilemoe_mlx.export.onnx.decoder import Built, build
from mobilemoe_mlx.export.onnx.external_data import ExternalData
from mobilemoe_mlx.export.onnx.genai import genai_config, tokenizer_class
from mobilemoe_mlx.export.onnx.options import OLDEST_RUNTIME, ExportOptions
from mobilemoe_mlx.onnx_folder.folder import (
    FORMAT,
    GENAI_CONFIG,
    MANIFEST,
    MODEL,
    VERSION,
    WEIGHTS,
    ONNXFolder,
    is_onnx_folder,
)

# Of the graph and small files; S has 0.5 MB.
_GRAPH_BYTES = 20_000_000


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    form: str
    model_bytes: int  # of the graph and its weights
    checkpoint_bytes: int  # of the checkpoint's INT4 tensors
    has_tokenizer: bool
    added_error: AddedError | None  # of experts that were rounded a second time

    def to_dict(self) -> dict[str, Any]:
        """What was written as JSON holds it."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def export_onnx(
    checkpoint: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    quantize: bool = False,
    adapters: Sequence[tuple[Path, float]] = (),
    force: bool = False,
) -> Exported:
    """Write the checkpoint folder as the folder `output`.

    `adapters`: folders with weights, fused with the checkpoint if INT4 keeps them (`fuse`).
    `quantize`: round a BF16 checkpoint to nearest INT4 first. `force`: replace an earlier export.
    Raises UserError for a checkpoint with anything wrong, impossible options, an output that
    exists, or too little disk space; nothing is then written.
    """
    options = options or ExportOptions()
    folder = files.resolved(output)
    check_apart(folder, [checkpoint, *(place for place, _ in adapters)])
    _check_output(folder, force)
    source = open_source(checkpoint, quantize=quantize, adapters=adapters)
    source.args.check_routed_and_shared("An ONNX export")
    options.check(source.args)
    _check_disk(folder, source)
    # 1. What does not depend on the weights, since it may fail soonest.
    with whole_folder(folder) as new:
        write_companions(source, new)
        has_tokenizer = _adapt_tokenizer(new)
        operators = _copy_operators(new, options)
        # 2. The graph, and on the way its weights, one tensor at a time.
        data = ExternalData(new / WEIGHTS)
        built = build(source, options, data)
        data.close()
        files.write(new / MODEL, built.model.SerializeToString())
        onnx.checker.check_model(str(new / MODEL))
        # 3. How it is run, what rounding experts a second time costs, and the list of all files.
        config = genai_config(source, options, MODEL, built.cached_head_dim, operators)
        files.write_json(new / GENAI_CONFIG, config)
        content = _manifest(source, options, built)
        error = None
        if built.added_errors:
            export = ONNXFolder(new, content, None, None)
            error = added_error(export, source, built.added_errors)
            content["added_error"] = dataclasses.asdict(error)
        listed = list_files(new, [new])
        files.write_json(new / MANIFEST, {**content, "files": listed})
        size = sum((new / name).stat().st_size for name in (MODEL, WEIGHTS))
    return Exported(
        folder=folder,
        form=options.form,
        model_bytes=size,
        checkpoint_bytes=_bytes(source),
        has_tokenizer=has_tokenizer,
        added_error=error,
    )


def _adapt_tokenizer(folder: Path) -> bool:
    """Name the tokenizer's class as genai needs it; -> whether there is a tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        return False
    path = folder / "tokenizer_config.json"
    files.write_json(path, {**files.read_json(path), "tokenizer_class": tokenizer_class(folder)})
    return True


def _copy_operators(folder: Path, options: ExportOptions) -> str | None:
    """Copy the library of the form's operators; -> its name, None where it needs none."""
    if options.form != "fused":
        return None
    from mobilemoe_mlx.onnx_operators import library_path

    library = library_path()
    files.copy(library, folder / library.name)
    return library.name


def _manifest(source: Checkpoint, options: ExportOptions, built: Built) -> dict[str, Any]:
    """manifest.json's content without the list of files: form, settings and sizes."""
    args = source.args
    cache = account(args, options.context).kv_bytes_per_token[options.activations]
    return {
        "format": FORMAT,
        "version": VERSION,
        "form": options.form,
        "onnxruntime": OLDEST_RUNTIME[options.form],
        "context": options.context,
        "activations": options.activations,
        "accuracy_level": options.accuracy_level,
        "quantization": INT4_QUANTIZATION,
        "tokens": {"bos": args.bos_token_id, "eos": list(source.end_token_ids())},
        "sizes": {
            "checkpoint_weights": _bytes(source),
            "key_value_cache": cache * options.context * built.cached_head_dim // args.head_dim,
        },
    }


def _check_output(folder: Path, force: bool) -> None:
    files.output_folder(folder.parent)
    if not folder.exists():
        return
    if folder.is_dir() and (not any(folder.iterdir())):
        return
    if not is_onnx_folder(folder):
        raise UserError(
            f"{folder} exists and is not an export of ours, so nothing replaces it: choose "
            "another name."
        )
    if not force:
        raise UserError(f"{folder} exists: choose another name, or replace it (--overwrite).")


def _check_disk(folder: Path, source: Checkpoint) -> None:
    needed = _bytes(source) + _GRAPH_BYTES
    place = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{place} has {free / 1e6:,.1f} MB free, and exporting needs {needed / 1e6:,.1f} MB: "
            "make room or choose another place."
        )


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())
