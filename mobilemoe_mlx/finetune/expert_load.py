"""How much each routed expert is used by some batches, and how evenly: before and after a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mobilemoe_mlx.data.packing import PADDING, Batch, document_attention_mask
from mobilemoe_mlx.model import LayerTrace, Model
from mobilemoe_mlx.train.balancing import load_statistics


@dataclass(frozen=True)
class ExpertLoad:
    """Use of the experts, over the real tokens of some batches."""

    tokens: mx.array  # float32 [layers, experts], how many chose each expert
    weights: mx.array  # float32 [layers, experts], sum of the routing weights that each was given

    @property
    def entropy(self) -> list[float]:
        """Entropy of each layer's load over log(experts): 1 = even."""
        return load_statistics(self.tokens)["load_entropy"]


def expert_load(model: Model, batches: Iterable[Batch], *, document_mask: bool) -> ExpertLoad:
    """Run the model over `batches` and count; at least one batch."""
    total: Any = None
    for batch in batches:
        trace: list[LayerTrace] = []
        mask = document_attention_mask(batch.documents) if document_mask else None
        model.model(mx.array(batch.inputs), mask=mask, trace=trace)
        real = mx.array((batch.documents != PADDING).flatten())
        counted = mx.stack([_count(layer, real) for layer in trace], axis=1)
        total = counted if total is None else total + counted
        mx.eval(total)
    return ExpertLoad(total[0], total[1])


def _count(layer: LayerTrace, real: mx.array) -> mx.array:
    """float32 [2, experts]: tokens and sums of routing weights of one layer."""
    experts, weights = layer.routing.experts, layer.routing.weights
    zeros = mx.zeros((layer.routing.logits.shape[-1],), mx.float32)
    ones = mx.ones_like(weights)
    return mx.stack(
        [
            zeros.at[experts.flatten()].add((each * real[:, None]).flatten())
            for each in (ones, weights)
        ]
    )


def entropy_report(before: list[float], after: list[float]) -> str:
    """A line about how the load moved, for people."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    layers = ", ".join(f"{a:.2f} to {b:.2f}" for a, b in zip(before, after, strict=True))
    return (
        f"expert load (entropy, 1 = even): {mean(before):.3f} before, {mean(after):.3f} after; "
        f"by layer {layers}"
    )
