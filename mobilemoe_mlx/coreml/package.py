"""Export a checkpoint as a Core ML package with its resources folder: both whole, or neither."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mobilemoe_mlx.checkpoint_check import Checkpoint
from mobilemoe_mlx.coreml import metadata, resources, side_file
from mobilemoe_mlx.coreml.custom_layers import max_inline_bytes, write_custom_layer_model
from mobilemoe_mlx.coreml.options import ExportOptions
from mobilemoe_mlx.coreml.save_program import write_program
from mobilemoe_mlx.coreml.source import open_source
from mobilemoe_mlx.errors import UserError

# Of the program's text; S has 2.4 MB, L below 8.
_PROGRAM_BYTES = 20_000_000


@dataclass(frozen=True)
class Exported:
    """What was written."""

    package: Path
    resources: Path
    package_bytes: int  # with the weights beside it, if there are any
    checkpoint_bytes: int  # of the checkpoint's INT4 tensors
    has_tokenizer: bool


def export_coreml(
    checkpoint: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    quantize: bool = False,
    credit: metadata.Credits | None = None,
    force: bool = False,
) -> Exported:
    """Write the checkpoint folder as `output` (.mlpackage) and `output`'s resources folder.

    INT4 codes and float16 scales go into the package bit for bit. `quantize`: round a BF16
    checkpoint to nearest first. `force`: replace an earlier export. Raises UserError for a
    checkpoint with anything wrong, impossible options, an output that exists, or too little disk
    space; nothing is then written.
    """
    options = options or ExportOptions()
    package = Path(output).expanduser().resolve()
    _check_output(package, force)
    source = open_source(checkpoint, quantize=quantize)
    options.check(source.args)
    _check_outside(source.folder.resolve(), package)
    _check_disk(package, source, options)
    with _both_or_neither(package) as work:
        written, folder = work / package.name, work / resources.resources_name(package)
        folder.mkdir()
        resources.write_resources(source, folder)
        credit = credit or metadata.Credits()
        spec = (
            write_program(source, options, credit, written)
            if options.moe == "core-ops"
            else write_custom_layer_model(source, options, credit, written, folder)
        )
        resources.write_manifest(written, folder, spec, source, options)
        parts = (*written.rglob("*"), folder / side_file.NAME)
        size = sum(p.stat().st_size for p in parts if p.is_file())
        has_tokenizer = (folder / "tokenizer.json").is_file()
    return Exported(
        package=package,
        resources=package.with_name(resources.resources_name(package)),
        package_bytes=size,
        checkpoint_bytes=sum(t.nbytes for t in source.tensors.values()),
        has_tokenizer=has_tokenizer,
    )


def _check_output(package: Path, force: bool) -> None:
    if package.suffix != ".mlpackage":
        raise UserError(f"{package.name}: the output's name must end in .mlpackage.")
    folder = package.with_name(resources.resources_name(package))
    for path, marker in ((package, "Manifest.json"), (folder, resources.MANIFEST)):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            continue
        if not force:
            raise UserError(f"{path} exists: choose another name, or replace it (--force).")
        if not (path / marker).is_file():
            raise UserError(
                f"{path} is not an export (it has no {marker}), so it is not replaced: choose "
                "another name."
            )


def _check_outside(source: Path, package: Path) -> None:
    if source.is_relative_to(package) or source.is_relative_to(
        package.with_name(resources.resources_name(package))
    ):
        raise UserError(f"{package} would replace the checkpoint {source}: choose another name.")


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
            f"{place} has {free / 1e9:.2f} GB free, and exporting needs {needed / 1e9:.2f} GB"
            f"{' (twice the weights, for a moment)' if copies == 2 else ''}: make room or choose "
            "another place."
        )


@contextlib.contextmanager
def _both_or_neither(package: Path) -> Iterator[Path]:
    """Yield a folder whose package and resources take their names when the block ends well."""
    work = package.with_name(f".{package.name}.partial")
    names = (resources.resources_name(package), package.name)
    moved: list[tuple[Path, Path]] = []
    keep = False
    try:
        package.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        yield work
        old = work / "old"
        old.mkdir()
        for name in names:
            target = package.with_name(name)
            if target.exists():
                _move(target, old / name, moved)
            _move(work / name, target, moved)
    except BaseException as error:
        try:
            for source, target in reversed(moved):
                os.rename(target, source)
        except OSError as second:
            keep = True
            raise UserError(
                f"{package} could not be written ({error}), nor the earlier export be put back "
                f"({second}): it is in {work / 'old'}."
            ) from error
        if isinstance(error, OSError):
            what = ": ".join(str(part) for part in (error.strerror, error.filename) if part)
            raise UserError(
                f"{package} could not be written ({what or error}). Nothing of it was left; make "
                "room or choose another place."
            ) from error
        raise
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)


def _move(source: Path, target: Path, moved: list[tuple[Path, Path]]) -> None:
    os.rename(source, target)
    moved.append((source, target))
