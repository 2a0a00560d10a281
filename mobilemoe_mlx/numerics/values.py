"""What a model computed for one sequence, in one form for every program that computes it."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.model import LayerTrace, Model


@dataclass(frozen=True)
class LayerValues:
    """What one layer computed for one sequence."""

    hidden: np.ndarray  # float32 [tokens, hidden], the residual stream after the layer
    scores: np.ndarray  # float32 [tokens, experts], biased: what the selection sorts by
    experts: np.ndarray  # int [tokens, slots]


@dataclass(frozen=True)
class Trace:
    """What a model computed for one sequence."""

    layers: list[LayerValues]
    logits: np.ndarray  # float32 [tokens, vocabulary]; some tokens' alone where that was asked


def trace_mlx(model: Model, tokens: list[int], rows: list[int] | None = None) -> Trace:
    """Run the MLX model on one sequence; `rows`: the tokens whose logits are wanted (None: all)."""
    traced: list[LayerTrace] = []
    hidden = model.model(mx.array([tokens]), trace=traced)
    logits = model.logits(hidden if rows is None else hidden[:, mx.array(rows)])
    mx.eval(logits, traced)
    layers = []
    for layer, (hidden, routing) in zip(model.layers, traced, strict=True):
        scores = mx.sigmoid(routing.logits)
        if scores.size:
            scores = scores + layer.feed_forward.expert_bias.astype(mx.float32)
        layers.append(LayerValues(_numpy(hidden[0]), _numpy(scores), np.array(routing.experts)))
    return Trace(layers, _numpy(logits[0]))


def _numpy(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))
