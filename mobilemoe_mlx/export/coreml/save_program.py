"""Lower the MIL program to Core ML's own ops and save it as an .mlpackage."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import coremltools as ct
from coremltools.converters.mil.mil import Program
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline
from coremltools.proto import Model_pb2

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.export.coreml import metadata, moe_lowering
from mobilemoe_mlx.export.coreml.disk_errors import disk_errors
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.program import build_program

# coremltools' other passes are left out: they rewrite types and patterns that the program states as
# it wants them. Its default pipeline as a whole removes one operation in thirty of the program's.
PASSES = (moe_lowering.PASS, "common::dead_code_elimination")


def write_program(
    checkpoint: Checkpoint, options: ExportOptions, credit: metadata.Credits, package: Path
) -> Model_pb2.Model:
    """Write `package` (.mlpackage) with the functions prefill and decode and one weight file.

    Returns its model as written. Temporary files go beside `package`. Raises OSError when the disk
    is full.
    """
    save_program(build_program(checkpoint, options), package, options.deployment_target)
    path = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    metadata.describe(spec, checkpoint, options, credit)
    path.write_bytes(spec.SerializeToString(deterministic=True))
    path.chmod(0o644)  # coremltools leaves it readable for its owner alone
    return spec


def save_program(program: Program, package: Path, target: str) -> None:
    """Lower `program` and write it as `package` for `target` ("iOS18"); see `write_program`."""
    pipeline = PassPipeline.EMPTY
    pipeline.passes = list(PASSES)
    # It prints progress bars of its passes, which take seconds.
    silent = contextlib.redirect_stderr(io.StringIO())
    with _temporary_files_in(package.parent), silent, disk_errors():
        ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,  # keep the types that the program declares
            minimum_deployment_target=getattr(ct.target, target),
            pass_pipeline=pipeline,
            package_dir=str(package),
            skip_model_load=True,
        )


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    # coremltools writes the weights to a temporary folder first; /tmp may be small.
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
