"""Export a checkpoint as a Core ML package with its resources folder: both whole, or neither."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx.all_or_none import all_or_none
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.rewrite import check_apart
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export import manifest
from mobilemoe_mlx.export.companions import write_companions
from mobilemoe_mlx.export.coreml import metadata, resources
from mobilemoe_mlx.export.coreml.custom import side_file_writer
from mobilemoe_mlx.export.coreml.custom.layers import max_inline_bytes, write_custom_layer_model
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.save_program import write_program
from mobilemoe_mlx.export.int4_source import open_source
from mobilemoe_mlx.files import output_folder, resolved

# Of the program's text; S has 2.4 MB, L below 8.
_PROGRAM_BYTES = 20_000_000

# A model's description comes first in its file; it has the checkpoint's model card, cut.
_DESCRIPTION_BYTES = 1_000_000


@dataclass(frozen=True)
class Exported:
    """What was written."""

    package: Path
    resources: Path
    package_bytes: int  # with the weights beside it, if there are any
    checkpoint_bytes: int  # of the checkpoint's INT4 tensors
    has_tokenizer: bool

    def to_dict(self) -> dict[str, Any]:
        """What was written as JSON holds it."""
        paths = {"package": str(self.package), "resources": str(self.resources)}
        return {**dataclasses.asdict(self), **paths}


def export_coreml(
    checkpoint: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    quantize: bool = False,
    adapters: Sequence[tuple[Path, float]] = (),
    credit: metadata.Credits | None = None,
    force: bool = False,
) -> Exported:
    """Write the checkpoint folder as `output` (.mlpackage) and `output`'s resources folder.

    `adapters`: folders with weights, fused with the checkpoint if INT4 keeps them (`fuse`).
    INT4 codes and float16 scales go into the package bit for bit. `quantize`: round a BF16
    checkpoint to nearest first. `force`: replace an earlier export. Raises UserError for a
    checkpoint with anything wrong, impossible options, an output that exists, or too little disk
    space; nothing is then written.
    """
    options = options or ExportOptions()
    package = resolved(output)
    _check_output(package, force)
    targets = [resources.resources_folder(package), package]
    for target in targets:
        check_apart(target, [checkpoint, *(place for place, _ in adapters)])
    source = open_source(checkpoint, quantize=quantize, adapters=adapters)
    source.args.check_routed_and_shared("A Core ML package")
    options.check(source.args)
    _check_disk(package, source, options)
    with all_or_none(targets, package.with_name(f".{package.name}.partial")) as work:
        written = work / package.name
        folder = resources.resources_folder(written)
        folder.mkdir()
        write_companions(source, folder)
        credit = credit or metadata.Credits()
        spec = (
            write_program(source, options, credit, written)
            if options.moe == "core-ops"
            else write_custom_layer_model(source, options, credit, written, folder)
        )
        resources.write_manifest(written, folder, spec, source, options)
        parts = (*written.rglob("*"), folder / side_file_writer.NAME)
        size = sum(p.stat().st_size for p in parts if p.is_file())
        has_tokenizer = (folder / "tokenizer.json").is_file()
    return Exported(
        package=package,
        resources=resources.resources_folder(package),
        package_bytes=size,
        checkpoint_bytes=sum(t.nbytes for t in source.tensors.values()),
        has_tokenizer=has_tokenizer,
    )


def _check_output(package: Path, force: bool) -> None:
    if package.suffix != ".mlpackage":
        raise UserError(
            f"{package.name}: the output must be a name that ends in .mlpackage, as S.mlpackage."
        )
    output_folder(package.parent)
    folder = resources.resources_folder(package)
    for path, is_ours in ((package, _is_our_package), (folder, _is_our_folder)):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            continue
        if not is_ours(path):
            raise UserError(
                f"{path} exists and is not an export of ours, so nothing replaces it: choose "
                "another name."
            )
        if not force:
            raise UserError(f"{path} exists: choose another name, or replace it (--overwrite).")


def _is_our_package(path: Path) -> bool:
    try:
        with (path / "Data" / "com.apple.CoreML" / "model.mlmodel").open("rb") as file:
            return f"{metadata.PREFIX}form".encode() in file.read(_DESCRIPTION_BYTES)
    except OSError:
        return False


def _is_our_folder(path: Path) -> bool:
    return manifest.is_manifest(path / manifest.NAME, resources.FORMAT)


def _check_disk(package: Path, source: Checkpoint, options: ExportOptions) -> None:
    weights = sum(tensor.nbytes for tensor in source.tensors.values())
    # coremltools writes weights and then copies them into the package; a side file is written once.
    beside = options.moe == "custom-layer" and weights > max_inline_bytes(options)
    copies = 1 if beside else 2
    needed = copies * weights + _PROGRAM_BYTES
    place = next(parent for parent in package.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{place} has {free / 1e6:,.1f} MB free, and exporting needs {needed / 1e6:,.1f} MB"
            f"{' (twice the weights, for a moment)' if copies == 2 else ''}: make room or choose "
            "another place."
        )
