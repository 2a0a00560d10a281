"""The checkpoint that an export starts from, always in the published INT4 form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.adapters.fuse import int4_with_adapters
from mobilemoe_mlx.checkpoint.check import Checkpoint, check_scales, open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.rewrite import published_int4
from mobilemoe_mlx.checkpoint.tensor_file import Tensor
from mobilemoe_mlx.errors import UserError


def open_source(
    folder: str | Path,
    *,
    quantize: bool = False,
    adapters: Sequence[tuple[Path, float]] = (),
    force: bool = False,
) -> Checkpoint:
    """Open `folder` with its tensors under the published INT4 names and forms.

    `adapters`: folders with weights that are fused with it. Those that INT4 would lose raise
    UserError, unless `force`.
    A BF16 checkpoint needs `quantize`, which rounds it to nearest INT4 (the one lossy step). Raises
    UserError for a checkpoint with anything wrong, and when `quantize` does not fit it.
    """
    checkpoint = open_checkpoint(folder)
    check_scales(checkpoint)
    check_finite(checkpoint)
    if checkpoint.layout is Layout.FLOAT:
        if not quantize:
            raise UserError(
                f"{folder} is BF16, and packages hold INT4: add --quantize to round it to nearest, "
                "or export the checkpoint of its QAT stage, which loses less."
            )
    elif quantize:
        raise UserError(f"{folder} is INT4 already: export it without --quantize.")
    if adapters:
        return int4_with_adapters(checkpoint, adapters, force=force)
    return published_int4(checkpoint)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Read `tensor` as numpy; bfloat16 is widened to float32, which is exact."""
    array = tensor.read()
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
