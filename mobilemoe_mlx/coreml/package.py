"""Export a checkpoint as a Core ML package with its resources folder: both whole, or neither."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coremltools.proto import Model_pb2

from mobilemoe_mlx.checkpoint_check import Checkpoint
from mobilemoe_mlx.coreml import metadata, ml_program, resources, side_weights
from mobilemoe_mlx.coreml.custom_layers import write_custom_layer_model
from mobilemoe_mlx.coreml.options import ExportOptions
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
    _check_disk(package, source)
    with _both_or_neither(package) as work:
        written, folder = work / package.name, work / resources.resources_name(package)
        folder.mkdir()
        resources.write_resources(source, folder)
        if options.moe == "core-ops":
            ml_program.write_ml_program(source, options, written)
        else:
            write_custom_layer_model(source, options, written, folder)
        spec = _rewrite_description(written, source, options, credit or metadata.Credits())
        resources.write_manifest(written, folder, spec, source, options)
        parts = (*written.rglob("*"), folder / side_weights.NAME)
        size = sum(p.stat().st_size for p in parts if p.is_file())
        has_tokenizer = (folder / "tokenizer.json").is_file()
    return Exported(
        package=package,
        resources=package.with_name(resources.resources_name(package)),
        package_bytes=size,
        checkpoint_bytes=sum(t.nbytes for t in source.tensors.values()),
        has_tokenizer=has_tokenizer,
    )


def _rewrite_description(
    package: Path, source: Checkpoint, options: ExportOptions, credit: metadata.Credits
) -> Model_pb2.Model:
    path = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    metadata.describe(spec, source, options, credit)
    path.write_bytes(spec.SerializeToString(deterministic=True))
    path.chmod(0o644)  # coremltools leaves it readable for its owner alone
    return spec


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


def _check_disk(package: Path, source: Checkpoint) -> None:
    weights = sum(tensor.nbytes for tensor in source.tensors.values())
    # coremltools writes the weight file and then copies it into the package.
    needed = 2 * weights + _PROGRAM_BYTES
    place = next(parent for parent in package.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{place} has {free / 1e9:.2f} GB free, and exporting needs {needed / 1e9:.2f} GB "
            "(twice the weights, for a moment): make room or choose another place."
        )


@contextlib.contextmanager
def _both_or_neither(package: Path) -> Iterator[Path]:
    """Yield a folder whose package and resources take their names when the block ends well."""
    work = package.with_name(f".{package.name}.partial")
    names = (resources.resources_name(package), package.name)
    moved: list[tuple[Path, Path]] = []
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
        for source, target in reversed(moved):
            os.rename(target, source)
        if isinstance(error, OSError):
            raise UserError(
                f"{package} could not be written ({error.strerror or error}). Nothing of it was "
                "left; make room or choose another place."
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move(source: Path, target: Path, moved: list[tuple[Path, Path]]) -> None:
    os.rename(source, target)
    moved.append((source, target))
