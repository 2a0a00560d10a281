"""Loss on held-out batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

import mlx.core as mx

from mobilemoe_mlx.data.packing import Batch, document_attention_mask
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.train.loss import summed_loss


def heldout_loss(
    model: Model, batches: Iterable[Batch], *, document_mask: bool = False, chunk: int = 2048
) -> float:
    """Mean cross-entropy a target, in nats, of a float or INT4 model.

    `chunk`: tokens whose logits exist at one time.
    Raises UserError when it is not finite: no number of such a model means anything.
    """
    total, targets = 0.0, 0.0
    for batch in batches:
        mask = document_attention_mask(batch.documents) if document_mask else None
        hidden = model.model(mx.array(batch.inputs), mask=mask)
        rows = hidden.flatten(0, 1)
        wanted, counts = (mx.array(a).flatten() for a in (batch.targets, batch.loss_mask))
        for start in range(0, len(rows), chunk):
            part = slice(start, min(start + chunk, len(rows)))
            total += summed_loss(model.logits(rows[part]), wanted[part], counts[part]).item()
        targets += float(batch.loss_mask.sum())
    if not math.isfinite(total):
        raise UserError(
            f"the held-out loss is {total}, so the weights are damaged or training has diverged: "
            "lower optimizer.peak_lr or lengthen optimizer.warmup_steps"
        )
    return total / max(targets, 1.0)
