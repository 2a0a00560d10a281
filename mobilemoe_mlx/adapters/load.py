"""Load a checkpoint with its adapters, to run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mobilemoe_mlx.adapters.adapter_file import attach_read, read_adapters
from mobilemoe_mlx.adapters.base_digest import digest_of
from mobilemoe_mlx.adapters.fused import Weighted, fused_checkpoint
from mobilemoe_mlx.checkpoint.check import Checkpoint, open_checkpoint
from mobilemoe_mlx.checkpoint.load_save import load_model, load_tensors
from mobilemoe_mlx.model import Model


def load_adapted(
    folder: str | Path,
    adapters: Sequence[tuple[str | Path, float]],
    dtype: mx.Dtype | None = None,
) -> Model:
    """The model in `folder` with `adapters`, each (folder, weight), ready to run.

    They stay beside the base, unrounded; only those trained through INT4 are fused with it, in
    memory, since what they were trained for is the rounded sum. `dtype`: see `load_model`. Raises
    UserError for all that is wrong with the checkpoint or an adapter.
    """
    checkpoint = open_checkpoint(folder)
    found = read_adapters(adapters, checkpoint.args, digest_of(checkpoint))
    return with_adapters(checkpoint, found, dtype)


def with_adapters(
    checkpoint: Checkpoint, found: Sequence[Weighted], dtype: mx.Dtype | None = None
) -> Model:
    """The same of a checkpoint and adapters that have been read and checked against it."""
    if any(adapter.through_int4 for adapter, _ in found):
        return load_tensors(fused_checkpoint(checkpoint, found, "int4"), dtype)
    model = load_model(checkpoint.folder, dtype)
    attach_read(model, found)
    return model
