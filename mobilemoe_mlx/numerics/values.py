"""What a model computed for one sequence, in one form for every program that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.model import LayerTrace, Model


@dataclass(frozen=True)
class PartialLayer:
    """What a program shows of one layer for one sequence; None: not shown."""

    hidden: np.ndarray | None  # float32 [tokens, hidden], the residual stream after the layer
    scores: np.ndarray | None  # float32 [tokens, experts], biased: what the selection sorts by
    experts: np.ndarray | None  # int [tokens, slots]


@dataclass(frozen=True)
class LayerValues(PartialLayer):
    """All of it."""

    hidden: np.ndarray
    scores: np.ndarray
    experts: np.ndarray


@dataclass(frozen=True)
class PartialTrace:
    """What a program shows of its computation for one sequence."""

    layers: Sequence[PartialLayer]
    logits: np.ndarray  # float32 [tokens, vocabulary]; some tokens' alone where that was asked


@dataclass(frozen=True)
class Trace(PartialTrace):
    """What a model computed for one sequence."""

    layers: list[LayerValues]


def trace_mlx(
    model: Model,
    tokens: list[int],
    rows: list[int] | None = None,
    cache: list[Any] | None = None,
) -> Trace:
    """Run the MLX model on one sequence; `rows`: the tokens whose logits are wanted (None: all).

    `cache`: an empty one of the model, to be filled for what follows.
    """
    traced: list[LayerTrace] = []
    hidden = model.model(mx.array([tokens]), cache, trace=traced)
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
