"""Loss on held-out batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

import mlx.core as mx

from mobilemoe_mlx.data.packing import Batch, document_attention_mask
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.linux_cpu.exponential import logsumexp
from mobilemoe_mlx.model import Model


def heldout_loss(model: Model, batches: Iterable[Batch], *, document_mask: bool = False) -> float:
    """Mean cross-entropy a target, in nats, of a float or INT4 model.

    Raises UserError when it is not finite: no number of such a model means anything.
    """
    total, targets = 0.0, 0.0
    for batch in batches:
        mask = document_attention_mask(batch.documents) if document_mask else None
        hidden = model.model(mx.array(batch.inputs), mask=mask)
        # A row at a time: the logits of a whole batch may not fit.
        for h, target, counts in zip(
            hidden, mx.array(batch.targets), mx.array(batch.loss_mask), strict=True
        ):
            logits = model.logits(h).astype(mx.float32)
            chosen = mx.take_along_axis(logits, target[:, None], axis=-1).squeeze(-1)
            losses = logsumexp(logits) - chosen
            total += (losses * counts).sum().item()
        targets += float(batch.loss_mask.sum())
    if not math.isfinite(total):
        raise UserError(
            f"the held-out loss is {total}, so the weights are damaged or training has diverged: "
            "lower optimizer.peak_lr or lengthen optimizer.warmup_steps"
        )
    return total / max(targets, 1.0)
