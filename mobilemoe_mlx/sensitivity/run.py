"""`mobilemoe sensitivity`, from names to what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.checkpoint.hub import resolve
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.config import ScaleRule
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.heldout_data import open_heldout_data
from mobilemoe_mlx.sensitivity.measure import Sensitivity, check_budgets, sensitivity


def run_sensitivity(
    model: str | Path,
    data: str,
    *,
    most_tokens: int,
    experts: int = 0,
    budgets: Sequence[int] = (),
    rule: ScaleRule = "unclipped",
    revision: str | None = None,
    progress: Callable[[int], Callable[[], None]] = lambda total: lambda: None,
) -> Sensitivity:
    """Measure the BF16 checkpoint `model`, a folder or a repository, on `data`; see `sensitivity`.

    Budgets and data are looked at before the weights are. Raises UserError, one sentence, for an
    INT4 checkpoint, for `experts` of a model that has none, and for whatever else cannot be used.
    """
    folder = resolve(model, revision)
    checkpoint = open_checkpoint(folder)
    if checkpoint.layout is not Layout.FLOAT:
        raise UserError(
            f"{model} is in INT4 already: what rounding costs is measured on the BF16 checkpoint "
            "that it was made from."
        )
    if experts and not checkpoint.args.num_local_experts:
        raise UserError(f"{model} has no routed experts to measure: leave out --experts.")
    check_budgets(budgets, checkpoint.args)
    held = open_heldout_data(data, folder, whole_file=True, most_tokens=most_tokens)
    check_finite(checkpoint)
    return sensitivity(
        load_model(folder, mx.float32),
        held.batches,
        document_mask=held.document_mask,
        experts=experts,
        budgets=budgets,
        rule=rule,
        progress=progress,
    )
