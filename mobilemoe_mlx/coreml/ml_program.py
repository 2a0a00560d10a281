"""Lower the MIL program to Core ML's own ops and save it as an .mlpackage."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import coremltools as ct
from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipeline

from mobilemoe_mlx.checkpoint_check import Checkpoint
from mobilemoe_mlx.coreml import moe_lowering
from mobilemoe_mlx.coreml.options import ExportOptions
from mobilemoe_mlx.coreml.program import build_program

# Of coremltools' passes only those that remove what is not used: the others rewrite types and
# patterns, and const_elimination would unpack experts into the file.
_PASSES = (moe_lowering.PASS, "common::dead_code_elimination")


def write_ml_program(checkpoint: Checkpoint, options: ExportOptions, package: Path) -> None:
    """Write `package` (.mlpackage) with the functions prefill and decode and one weight file.

    Temporary files go beside `package`. Raises OSError when the disk is full.
    """
    pipeline = PassPipeline.EMPTY
    pipeline.passes = list(_PASSES)
    with _temporary_files_in(package.parent), contextlib.redirect_stderr(io.StringIO()):
        ct.convert(  # prints progress bars of its passes, which take seconds
            build_program(checkpoint, options),
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,  # keep the types that the program declares
            minimum_deployment_target=getattr(ct.target, options.deployment_target),
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
