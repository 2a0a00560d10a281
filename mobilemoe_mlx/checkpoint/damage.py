"""Weights that are not numbers: which tensors of a checkpoint hold NaN or infinity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mobilemoe_mlx.checkpoint.check import Checkpoint, fold_layers, open_checkpoint
from mobilemoe_mlx.errors import DamagedModel

_NAMED = 8  # tensors that a message names; the rest are counted


def damaged_tensors(checkpoint: Checkpoint, of: Callable[[str], bool] | None = None) -> list[str]:
    """The names of tensors with values that are not finite.

    Reads every float tensor, or those whose names `of` chooses.
    """
    return [
        name
        for name, tensor in checkpoint.tensors.items()
        if tensor.dtype in ("F32", "BF16", "F16")
        and (of is None or of(name))
        and not mx.isfinite(tensor.read().astype(mx.float32)).all().item()
    ]


def check_finite(checkpoint: Checkpoint, of: Callable[[str], bool] | None = None) -> None:
    """Raise DamagedModel naming the tensors with a NaN or an infinity; `of` as above."""
    if (text := damage_text(checkpoint, of)) is not None:
        raise DamagedModel(f"{checkpoint.folder}: {text}")


def damage_text(checkpoint: Checkpoint, of: Callable[[str], bool] | None = None) -> str | None:
    """One sentence about the damaged tensors of a checkpoint; None when there are none."""
    names = fold_layers(damaged_tensors(checkpoint, of))
    if not names:
        return None
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    verb = "has" if len(names) == 1 else "have"
    return (
        f"{', '.join(names[:_NAMED])}{more} {verb} values that are not finite: the checkpoint is "
        "damaged, or its training diverged. Download it again, or go back to an earlier one."
    )


def non_finite_error(folder: Path | None) -> DamagedModel:
    """The error for logits that are not finite, naming the damaged tensors of `folder`."""
    what = "the model's logits are not finite (NaN or infinite)"
    if folder is None:
        return DamagedModel(f"{what}: its weights are damaged, or its training diverged.")
    if (text := damage_text(open_checkpoint(folder))) is not None:
        return DamagedModel(f"{folder}: {what}: {text}")
    return DamagedModel(
        f"{folder}: {what}, though every weight is finite: its numbers outgrow the type it "
        "computes in. Its training diverged, or the checkpoint is damaged."
    )
