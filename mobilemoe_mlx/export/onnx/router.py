"""The router with ONNX's own operators: which experts a token goes to, and with what weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.config import NORMALIZE_EPS
from mobilemoe_mlx.export.onnx.graph import Graph
from mobilemoe_mlx.export.onnx.weights import Weights
from mobilemoe_mlx.onnx_folder import names


class Scores(NamedTuple):
    """Of T tokens and E experts."""

    plain: str  # float32 [T, E]
    biased: str  # float32 [T, E], what the selection sorts by


class Routing(NamedTuple):
    """The decision for each of T tokens."""

    experts: str  # int64 [T, slots], by falling score; ties go to the lower index
    weights: str  # float32 [T, slots]


def score(graph: Graph, weights: Weights, layer: int, x: str) -> Scores:
    """The router's scores of x float32 [T, hidden]."""
    at = f"model.layers.{layer}.feed_forward"
    logits = graph.add("Gemm", x, weights.float32(f"{at}.router.weight"), transB=1)
    plain = graph.add("Sigmoid", logits)
    biased = names.scores(layer)
    graph.add("Add", plain, weights.float32(f"{at}.expert_bias"), outputs=[biased])
    return Scores(plain, biased)


def route(graph: Graph, weights: Weights, layer: int, scores: Scores) -> Routing:
    """Select by the biased scores, and weight by the plain ones."""
    args = weights.args
    _, experts = graph.add(
        "TopK",
        scores.biased,
        graph.integers(args.num_experts_per_tok),
        outputs=[f"layers.{layer}/top_scores", names.experts(layer)],
        axis=-1,
        largest=1,
        sorted=1,
    )
    chosen = graph.add("GatherElements", scores.plain, experts, axis=1)
    if args.norm_topk_prob:
        total = graph.add("ReduceSum", chosen, graph.integers(1), keepdims=1)
        chosen = graph.add("Div", chosen, graph.add("Add", total, graph.scalar(NORMALIZE_EPS)))
    factor = graph.constant(args.routed_scaling_factor, np.float32)
    return Routing(experts, graph.add("Mul", chosen, factor))
