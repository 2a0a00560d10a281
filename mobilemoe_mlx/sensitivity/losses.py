"""Held-out losses document by document, so that differences of models can be resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.data.packing import PADDING, Batch, document_attention_mask
from mobilemoe_mlx.errors import DamagedModel
from mobilemoe_mlx.linux_cpu.exponential import logsumexp
from mobilemoe_mlx.model import Model


@dataclass(frozen=True)
class DocumentLosses:
    """Summed cross-entropy of each document of the held-out rows, in nats, and its targets.

    A document that is cut by a row's end counts as one in each row.
    """

    sums: np.ndarray  # float64 [documents]
    targets: np.ndarray  # float64 [documents], one at least in each

    @property
    def mean(self) -> float:
        """Nats a target."""
        return float(self.sums.sum() / self.targets.sum())

    def only(self, chosen: np.ndarray) -> DocumentLosses:
        """Those of the documents where bool `chosen` [documents] is true."""
        return DocumentLosses(self.sums[chosen], self.targets[chosen])


def document_losses(
    model: Model, batches: Sequence[Batch], *, document_mask: bool, chunk: int = 2048
) -> DocumentLosses:
    """The losses of a float model; `chunk`: tokens whose logits exist at one time.

    Raises DamagedModel for a loss that is not finite.
    """
    sums, targets = [], []
    for batch in batches:
        mask = document_attention_mask(batch.documents) if document_mask else None
        hidden = model.model(mx.array(batch.inputs), mask=mask).flatten(0, 1)
        wanted = mx.array(batch.targets).flatten()
        losses = np.concatenate(
            [
                np.array(
                    _losses(model, hidden[start : start + chunk], wanted[start : start + chunk])
                )
                for start in range(0, len(hidden), chunk)
            ]
        )
        place = _numbered(batch.documents)
        counts = batch.loss_mask.flatten().astype(np.float64)
        # Padding has no target, so where its losses go does not matter.
        sums.append(np.bincount(place, losses * counts))
        targets.append(np.bincount(place, counts))
    all_sums, all_targets = np.concatenate(sums), np.concatenate(targets)
    if not np.isfinite(all_sums).all():
        raise DamagedModel("The held-out loss is not finite, so the weights are damaged.")
    kept = all_targets > 0
    return DocumentLosses(all_sums[kept], all_targets[kept])


def _losses(model: Model, hidden: mx.array, targets: mx.array) -> mx.array:
    logits = model.logits(hidden).astype(mx.float32)
    return logsumexp(logits) - mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)


def _numbered(documents: np.ndarray) -> np.ndarray:
    """Batch.documents [B, T] -> int [B x T], another number for each document of each row."""
    most = int(documents.max()) + 1 - PADDING
    rows = np.arange(len(documents))[:, None] * most
    return (rows + documents - PADDING).flatten()
