"""Experts as ONNX Runtime's `QMoE`, their INT4 rounded again in groups along *in*."""

from __future__ import annotations

import numpy as np

from mobilemoe_mlx.config import GROUP_SIZE
from mobilemoe_mlx.export.onnx.graph import CONTRIB, Graph
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.export.onnx.portable_moe import added, normed, shared_expert
from mobilemoe_mlx.export.onnx.requantize import requantize
from mobilemoe_mlx.export.onnx.router import score
from mobilemoe_mlx.export.onnx.weights import OFFSET_BINARY, Int4, Weights


def qmoe(graph: Graph, weights: Weights, layer: int, h: str, options: ExportOptions) -> str:
    """The residual stream h [batch, tokens, hidden] after norm, experts and addition.

    Of experts that score alike, `QMoE` selects that of the higher index and the model that of the
    lower. So it is given all experts in reverse.
    """
    args = weights.args
    x, flat = normed(graph, weights, layer, h)
    scores = score(graph, weights, layer, flat)
    at = f"model.layers.{layer}.feed_forward.experts"
    gate_up = _experts(weights, f"{at}.gate_up", is_gate_up=True)
    down = _experts(weights, f"{at}.down", is_gate_up=False)
    routed = graph.add(
        "QMoE",
        flat,
        _reversed(graph, scores.biased),
        gate_up.codes,
        gate_up.scales,
        "",
        down.codes,
        down.scales,
        *[""] * 7,
        _reversed(graph, scores.plain),
        domain=CONTRIB,
        k=args.num_experts_per_tok,
        activation_type="swiglu",
        activation_alpha=1.0,
        activation_beta=0.0,
        swiglu_fusion=1,
        normalize_routing_weights=int(args.norm_topk_prob),
        expert_weight_bits=4,
        block_size=GROUP_SIZE,
        weights_prepacked=0,
        accuracy_level=options.accuracy_level,
    )
    routed = graph.add("Mul", routed, graph.scalar(args.routed_scaling_factor))
    return added(graph, layer, h, routed, shared_expert(graph, weights, layer, x, options))


def _experts(weights: Weights, name: str, is_gate_up: bool) -> Int4:
    """One matrix of all experts as `QMoE` takes it: [E, out, in / 2], gate and up in turns."""
    codes, scales = weights.read(f"{name}_qweight"), weights.read(f"{name}_scale")
    rounded = requantize(codes, scales)
    weights.added_errors[name] = rounded.error
    return Int4(
        *(
            weights.put(f"{name}_{kind}", [array := _in_turns(part[::-1], is_gate_up)], array.shape)
            for kind, part in (
                ("qweight", rounded.codes ^ OFFSET_BINARY),
                ("scale", rounded.scales),
            )
        )
    )


def _in_turns(array: np.ndarray, is_gate_up: bool) -> np.ndarray:
    """[E, 2w, n], gates first, with the rows of gate and up in turns: g0, u0, g1, u1, ..."""
    if not is_gate_up:
        return array
    experts, rows, columns = array.shape
    return array.reshape(experts, 2, rows // 2, columns).swapaxes(1, 2).reshape(array.shape)


def _reversed(graph: Graph, scores: str) -> str:
    """float32 [T, E] from the last expert to the first."""
    first, least = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    ends = (graph.integers(value) for value in (first, least, 1, -1))
    return str(graph.add("Slice", scores, *ends))
