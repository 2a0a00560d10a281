"""Fuse adapters into a checkpoint and write it as a published folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.adapters.adapter_file import read_adapters
from mobilemoe_mlx.adapters.adapter_settings import CONFIG
from mobilemoe_mlx.adapters.base_digest import digest_of
from mobilemoe_mlx.adapters.fused import Target, Weighted, fused_checkpoint, rule_of
from mobilemoe_mlx.adapters.load import with_adapters
from mobilemoe_mlx.adapters.survival import LEAST, Survival, survival
from mobilemoe_mlx.checkpoint.check import Checkpoint, open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.checkpoint.folder import (
    MAX_SHARD_BYTES,
    check_target,
    published_config,
    write_model_folder,
)
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.load_save import load_tensors
from mobilemoe_mlx.checkpoint.rewrite import check_apart
from mobilemoe_mlx.config import ScaleRule
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model


@dataclass(frozen=True)
class Fused:
    """What was written."""

    output: Path
    layout: Layout
    tensors: int
    nbytes: int  # of the tensors
    through_int4: bool  # whether an adapter was trained through INT4
    survival: tuple[Survival, ...]  # empty for BF16, and for adapters trained through INT4
    heldout_before: float | None  # nats a target, with the adapters beside the base
    heldout_after: float | None  # of what was written

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        content = dataclasses.asdict(self)
        return {**content, "output": str(self.output), "layout": self.layout.value}


def fuse(
    source: str | Path,
    adapters: Sequence[tuple[str | Path, float]],
    output: str | Path,
    *,
    to: Target | None = None,
    rule: ScaleRule | None = None,
    heldout: Callable[[Model], float] | None = None,
    force: bool = False,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Fused:
    """Write the checkpoint folder `source` with `adapters` added, as the published folder `output`.

    `to`: "bf16" (exact up to its rounding) or "int4"; None: the source's own, INT4 for adapters
    trained through it. `rule`: of INT4 scales; see `fused_checkpoint`. `heldout`: measures a model,
    before and after. One tensor is in memory at a time, but for that measurement. Raises UserError
    for all that is wrong with the checkpoint, an adapter or `output`, and, unless `force`, where
    INT4 would keep less than LEAST of the update; nothing is then written.
    """
    if (files.user_path(output) / CONFIG).is_file():
        raise UserError(
            f"{output} is an adapter, so the folder to write is missing: give it last, as in "
            "`mobilemoe fuse MODEL ADAPTER OUT`."
        )
    checkpoint = open_checkpoint(source)
    check_apart(output, [source, *(folder for folder, _ in adapters)])
    check_target(output, overwrite)
    found = read_adapters(adapters, checkpoint.args, digest_of(checkpoint))
    is_through_int4 = any(adapter.through_int4 for adapter, _ in found)
    if to is None:
        to = "int4" if is_through_int4 or checkpoint.layout is not Layout.FLOAT else "bf16"
    rule = rule or rule_of(found)
    check_finite(checkpoint)
    kept: tuple[Survival, ...] = ()
    if to == "int4" and not is_through_int4:
        kept = survival(checkpoint, found, rule)
        if not force:
            check_survival(kept)
    fused = fused_checkpoint(checkpoint, found, to, rule)
    before = heldout(with_adapters(checkpoint, found)) if heldout is not None else None
    after = heldout(load_tensors(fused)) if heldout is not None else None
    write_model_folder(
        output,
        published_config(fused.args, checkpoint.config),
        fused.tensors,
        metadata={**checkpoint.metadata, "format": "pt"},
        companions=source,
        settings=source,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
    )
    nbytes = sum(tensor.nbytes for tensor in fused.tensors.values())
    return Fused(
        output=Path(output),
        layout=fused.layout,
        tensors=len(fused.tensors),
        nbytes=nbytes,
        through_int4=is_through_int4,
        survival=kept,
        heldout_before=before,
        heldout_after=after,
    )


def check_survival(kept: Sequence[Survival]) -> None:
    """Raise UserError when rounding to INT4 keeps too little of an adapter."""
    if kept and kept[-1].survives < LEAST:
        parts = ", ".join(f"{each.kind} {each.survives:.0%}" for each in kept[:-1])
        raise UserError(
            f"INT4 would lose the adapter: {kept[-1].survives:.0%} of its update survives the "
            f"rounding ({parts}). Fuse it to BF16 (mobilemoe fuse ... --to bf16), train it through "
            "INT4 (mobilemoe finetune --method qat-lora), or fuse it all the same (--force)."
        )


def int4_with_adapters(
    checkpoint: Checkpoint, adapters: Sequence[tuple[str | Path, float]], *, force: bool = False
) -> Checkpoint:
    """An open checkpoint with adapters, each (folder, weight), in published INT4, for an export.

    Raises UserError as `fuse` does. `force`: do not ask how much of the adapters survives.
    """
    found: list[Weighted] = read_adapters(adapters, checkpoint.args, digest_of(checkpoint))
    rule = rule_of(found)
    if not force and not any(adapter.through_int4 for adapter, _ in found):
        check_survival(survival(checkpoint, found, rule))
    return fused_checkpoint(checkpoint, found, "int4", rule)
