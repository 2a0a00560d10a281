"""Load balance without an auxiliary loss: selection biases that follow the expert counts."""

from __future__ import annotations

import mlx.core as mx


def expert_counts(experts: mx.array, real: mx.array, num_experts: int) -> mx.array:
    """How many real tokens chose each expert: float32 [num_experts].

    `experts` uint32 [tokens, slots]; `real` bool [tokens], false for padding.
    """
    chosen = mx.broadcast_to(real[:, None], experts.shape).astype(mx.float32)
    counts = mx.zeros((num_experts,), mx.float32)
    return counts.at[experts.flatten()].add(chosen.flatten())


def updated_biases(biases: mx.array, counts: mx.array, rate: float) -> mx.array:
    """Move each bias by `rate` toward the under-used experts.

    `biases` and `counts` float32 [layers, experts]; an expert at exactly the mean stays.
    """
    return biases + rate * mx.sign(counts.mean(axis=-1, keepdims=True) - counts)


def load_statistics(counts: mx.array) -> dict[str, list[float]]:
    """Per layer, from counts [layers, experts]: the load's evenness.

    `load_entropy`: entropy of the load divided by log(experts), 1 = even. `max_load`: the busiest
    expert's load over the mean. `dead_experts`: experts that no token chose. Nothing of a model
    without routed experts.
    """
    if not counts.size:
        return {}
    load = counts / mx.maximum(counts.sum(axis=-1, keepdims=True), 1)
    experts = counts.shape[-1]
    entropy = -(load * mx.log(mx.maximum(load, 1e-30))).sum(axis=-1)
    # One expert alone is used evenly; log(1) would divide by zero.
    evenness = entropy / mx.log(experts) if experts > 1 else mx.ones_like(entropy)
    return {
        "load_entropy": evenness.tolist(),
        "max_load": (load.max(axis=-1) * experts).tolist(),
        "dead_experts": (counts == 0).sum(axis=-1).tolist(),
    }
