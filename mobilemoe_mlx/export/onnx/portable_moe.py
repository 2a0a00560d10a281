"""Experts with operators that every ONNX Runtime has, their INT4 left as it is.

A published expert has its groups along *out*, which no operator that multiplies by INT4 takes, so
the experts of a call are unpacked (exactly) and multiplied as float32: those of one token together,
and for more tokens one expert after the other with all its tokens, so that none is ever dropped and
one expert at a time is in memory unpacked.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto, helper

from mobilemoe_mlx.export.onnx.graph import Graph
from mobilemoe_mlx.export.onnx.ops import (
    float_value,
    from_activations,
    in_activations,
    linear,
    rms_norm,
    swiglu,
    unpack,
)
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.export.onnx.router import Routing, route, score
from mobilemoe_mlx.export.onnx.weights import Int4, Weights
from mobilemoe_mlx.onnx_folder import names


def portable(graph: Graph, weights: Weights, layer: int, h: str, options: ExportOptions) -> str:
    """The residual stream h [batch, tokens, hidden] after norm, experts and addition."""
    x, flat = normed(graph, weights, layer, h)
    routing = route(graph, weights, layer, score(graph, weights, layer, flat))
    routed = _RoutedExperts(graph, weights, layer, flat, routing).output()
    return added(graph, layer, h, routed, shared_expert(graph, weights, layer, x, options))


def normed(graph: Graph, weights: Weights, layer: int, h: str) -> tuple[str, str]:
    """h [batch, tokens, hidden] -> (the same after its norm, as [batch x tokens, hidden])."""
    name = f"model.layers.{layer}.post_attention_layernorm.weight"
    x = rms_norm(graph, h, weights.float32(name), weights.args.rms_norm_eps)
    return x, graph.add("Reshape", x, graph.integers(-1, weights.args.hidden_size))


def added(graph: Graph, layer: int, h: str, routed: str, shared: str) -> str:
    """`h` with what routed experts ([batch x tokens, hidden]) and the shared one add to it."""
    routed = graph.add("Reshape", routed, graph.add("Shape", h))
    both = graph.add("Add", routed, shared)
    return str(graph.add("Add", h, both, outputs=[names.hidden(layer)]))


def shared_expert(
    graph: Graph, weights: Weights, layer: int, x: str, options: ExportOptions
) -> str:
    """x float32 [batch, tokens, hidden] -> the shared expert's output, float32."""
    args = weights.args
    at = f"model.layers.{layer}.feed_forward.shared_expert"
    gate_up = weights.linear(f"{at}.gate_up_proj", [f"{at}.gate_proj", f"{at}.up_proj"])
    down = weights.linear(f"{at}.down_proj", [f"{at}.down_proj"])
    width = args.intermediate_size_mlp
    x = in_activations(graph, x, options)
    y = swiglu(graph, linear(graph, x, gate_up, args.hidden_size, 2 * width, options))
    y = linear(graph, y, down, width, args.hidden_size, options)
    return from_activations(graph, y, options)


class _RoutedExperts:
    """The routed experts of one layer."""

    def __init__(
        self, graph: Graph, weights: Weights, layer: int, x: str, routing: Routing
    ) -> None:
        """`x`: float32 [T, hidden]."""
        self.graph, self.args, self.x, self.routing = graph, weights.args, x, routing
        self.prefix = f"layers.{layer}"
        at = f"model.layers.{layer}.feed_forward.experts"
        self.gate_up, self.down = (
            Int4(
                weights.offset_binary(f"{at}.{stem}_qweight"),
                weights.unchanged(f"{at}.{stem}_scale"),
            )
            for stem in ("gate_up", "down")
        )
        # One for each token and slot, the slots of a token side by side.
        self.experts = graph.add("Reshape", routing.experts, graph.integers(-1))

    def output(self) -> str:
        """Their weighted sum, float32 [T, hidden]."""
        tokens = self.graph.add("Gather", self.graph.add("Shape", self.x), self._int(0))
        one, many = self._one_token(), self._many_tokens()
        return str(
            self.graph.add(
                "If",
                self.graph.add("Equal", tokens, self._int(1)),
                then_branch=one,
                else_branch=many,
            )
        )

    def _one_token(self) -> GraphProto:
        graph = Graph(self.graph, f"{self.prefix}/one_token")
        args = self.args
        slots, width, d = args.num_experts_per_tok, args.intermediate_size, args.hidden_size
        y = swiglu(graph, graph.add("MatMul", self.x, self._unpacked(graph, self.gate_up)))
        weights = graph.add("Reshape", self.routing.weights, graph.integers(slots, 1, 1))
        y = graph.add("Reshape", graph.add("Mul", y, weights), graph.integers(1, slots * width))
        # The second products of all slots and their sum are one.
        down = self._unpacked(graph, self.down)
        down = graph.add("Reshape", down, graph.integers(slots * width, d))
        return graph.subgraph("one_token", [], [float_value(graph.add("MatMul", y, down))])

    def _unpacked(self, graph: Graph, matrix: Int4) -> str:
        """The matrices of a token's experts, float32 [slots, in, out]."""
        return unpack(graph, *matrix, self.experts, self.args.num_experts_per_tok)

    def _many_tokens(self) -> GraphProto:
        graph = Graph(self.graph, f"{self.prefix}/many_tokens")
        slots, d = self.args.num_experts_per_tok, self.args.hidden_size
        used = graph.add("Unique", self.experts)
        pairs = graph.add("Shape", self.experts)
        shape = graph.add("Concat", pairs, graph.integers(d), axis=0)
        products = graph.add(
            "Loop",
            graph.add("Size", used),
            "",
            graph.add("Expand", graph.scalar(0), shape),
            outputs=[f"{self.prefix}/products"],
            body=self._one_expert(graph, used),
        )
        y = graph.add("Reshape", products, graph.integers(-1, slots, d))
        weights = graph.add("Unsqueeze", self.routing.weights, graph.integers(1))
        y = graph.add("MatMul", weights, y)  # [T, 1, d]
        y = graph.add("Reshape", y, graph.integers(-1, d))
        return graph.subgraph("many_tokens", [], [float_value(y)])

    def _one_expert(self, around: Graph, used: str) -> GraphProto:
        """The body of the loop: one expert's products, written to the rows of its pairs.

        A pair is a token and a slot; `used`: int64 [n], the experts that have any.
        """
        graph = Graph(around, f"{self.prefix}/expert")
        number, go_on, products = (
            f"{self.prefix}/expert/{name}" for name in ("number", "go_on", "products")
        )
        expert = graph.add("Gather", used, number)
        mine = graph.add("NonZero", graph.add("Equal", self.experts, expert))
        mine = graph.add("Reshape", mine, graph.integers(-1))
        token = graph.add("Div", mine, self._int(self.args.num_experts_per_tok))
        row = graph.add("Unsqueeze", expert, graph.integers(0))
        x = graph.add("Gather", self.x, token, axis=0)
        y = swiglu(graph, graph.add("MatMul", x, self._matrix(graph, self.gate_up, row)))
        y = graph.add("MatMul", y, self._matrix(graph, self.down, row))
        places = graph.add("Unsqueeze", mine, graph.integers(1))
        after = graph.add("ScatterND", products, places, y)
        return graph.subgraph(
            "one_expert",
            [
                helper.make_tensor_value_info(number, TensorProto.INT64, []),
                helper.make_tensor_value_info(go_on, TensorProto.BOOL, []),
                float_value(products),
            ],
            [
                helper.make_tensor_value_info(graph.add("Identity", go_on), TensorProto.BOOL, []),
                float_value(after),
            ],
        )

    def _matrix(self, graph: Graph, matrix: Int4, row: str) -> str:
        """The matrix of one expert, float32 [in, out]."""
        return str(graph.add("Squeeze", unpack(graph, *matrix, row, 1), graph.integers(0)))

    def _int(self, value: int) -> str:
        return self.graph.constant(value, np.int64)
