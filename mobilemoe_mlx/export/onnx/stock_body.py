"""A decoder by ONNX Runtime's own operators, but for its experts, which a form adds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from mobilemoe_mlx.config import GROUP_SIZE, ModelArgs
from mobilemoe_mlx.export.onnx.graph import CONTRIB, Graph
from mobilemoe_mlx.export.onnx.ops import (
    from_activations,
    in_activations,
    linear,
    rms_norm,
    unpack,
)
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.export.onnx.rotations import rotations
from mobilemoe_mlx.export.onnx.weights import Weights
from mobilemoe_mlx.onnx_folder import names

# The second half of a layer: (graph, weights, layer, h, options) -> h, the residual stream float32
# [batch, tokens, hidden] before and after norm, experts and addition.
EmitExperts = Callable[[Graph, Weights, int, str, ExportOptions], str]

# `GroupQueryAttention` on a CPU takes widths of a head that are multiples of this.
_HEAD_MULTIPLE = 16


class StockBody:
    """Builds embedding, layers and head into `graph`."""

    def __init__(
        self, graph: Graph, weights: Weights, options: ExportOptions, experts: EmitExperts
    ) -> None:
        self.args, self.weights, self.graph = weights.args, weights, graph
        self.options = options
        self._experts = experts

    @staticmethod
    def cached_head_dim(args: ModelArgs) -> int:
        """Features of a head in the cache: those of the model, padded for the operator."""
        return -(-args.head_dim // _HEAD_MULTIPLE) * _HEAD_MULTIPLE

    def embed(self) -> str:
        """-> the residual stream before the first layer, float32 [batch, tokens, hidden]."""
        args, graph = self.args, self.graph
        graph.within("embed_tokens")
        self._embedding = self.weights.linear("model.embed_tokens", ["model.embed_tokens"])
        rows = (args.vocab_size, args.hidden_size // GROUP_SIZE, 1)
        scales = self.weights.again(
            self._embedding.scales, "model.embed_tokens.scale_of_rows", rows
        )
        tokens = graph.add("Reshape", names.INPUT_IDS, graph.integers(-1))
        h = unpack(graph, self._embedding.codes, scales, tokens)  # [T, hidden / 32, 32]
        shape = graph.add("Shape", names.INPUT_IDS)
        shape = graph.add("Concat", shape, graph.integers(args.hidden_size), axis=0)
        self._positions()
        graph.within("embed_tokens")
        return str(graph.add("Reshape", h, shape))

    def layer(self, index: int, h: str) -> str:
        """The residual stream after a layer."""
        self.graph.within(f"layers.{index}")
        h = self._attention(index, h)
        return self._experts(self.graph, self.weights, index, h, self.options)

    def logits(self, h: str) -> None:
        """The output `logits` of h [batch, rows, hidden]."""
        args, graph, options = self.args, self.graph, self.options
        h = rms_norm(graph, h, self.weights.float32("model.norm.weight"), args.rms_norm_eps)
        x = in_activations(graph, h, options)
        x = linear(graph, x, self._embedding, args.hidden_size, args.vocab_size, options)
        # Of float32 it does nothing but name the output, and the runtime removes it.
        graph.add("Cast", x, outputs=[names.LOGITS], to=TensorProto.FLOAT)

    def _positions(self) -> None:
        """What the attention of all layers is given, and the tables of rotations."""
        args, graph = self.args, self.graph
        graph.within("positions")
        one = graph.constant(1, np.int64)
        used = graph.add("ReduceSum", names.ATTENTION_MASK, graph.integers(1), keepdims=0)
        last = graph.add("Sub", used, one)
        total = graph.add("Gather", graph.add("Shape", names.ATTENTION_MASK), one)
        self._seen = graph.add("Cast", last, to=TensorProto.INT32)
        self._total = graph.add("Cast", total, to=TensorProto.INT32)
        padding = (self.cached_head_dim(args) - args.head_dim) // 2
        dtype = np.float16 if self.options.activations == "float16" else np.float32
        self._tables = [
            self.weights.put(
                name, [table := np.pad(part, ((0, 0), (0, padding))).astype(dtype)], table.shape
            )
            for name, part in zip(
                ("rope_cos", "rope_sin"), rotations(args, self.options.context), strict=True
            )
        ]

    def _attention(self, index: int, h: str) -> str:
        """One layer's attention and its addition to the residual stream."""
        args, graph, options = self.args, self.graph, self.options
        at = f"model.layers.{index}"
        x = rms_norm(
            graph, h, self.weights.float32(f"{at}.input_layernorm.weight"), args.rms_norm_eps
        )
        x = in_activations(graph, x, options)
        sizes = (args.query_dim, args.key_value_dim, args.key_value_dim)
        packed = self.weights.linear(
            f"{at}.self_attn.qkv_proj", [f"{at}.self_attn.{name}_proj" for name in "qkv"]
        )
        qkv = linear(graph, x, packed, args.hidden_size, sum(sizes), options)
        q, k, v = graph.add("Split", qkv, graph.integers(*sizes), outputs=3, axis=-1)
        heads, kv_heads = args.num_attention_heads, args.num_key_value_heads
        out, _, _ = graph.add(
            "GroupQueryAttention",
            self._heads(q, heads, args.use_qk_norm),
            self._heads(k, kv_heads, args.use_qk_norm),
            self._heads(v, kv_heads, False),
            names.PAST_KEY % index,
            names.PAST_VALUE % index,
            self._seen,
            self._total,
            *self._tables,
            outputs=[
                f"layers.{index}/attention",
                names.PRESENT_KEY % index,
                names.PRESENT_VALUE % index,
            ],
            domain=CONTRIB,
            num_heads=heads,
            kv_num_heads=kv_heads,
            do_rotary=1,
            rotary_interleaved=1,
            scale=1 / math.sqrt(args.head_dim),
        )
        out = self._unpadded(out, heads)
        o = self.weights.linear(f"{at}.self_attn.o_proj", [f"{at}.self_attn.o_proj"])
        out = linear(graph, out, o, args.query_dim, args.hidden_size, options)
        return str(graph.add("Add", h, from_activations(graph, out, options)))

    def _heads(self, x: str, heads: int, normed: bool) -> str:
        """x [batch, tokens, heads x head_dim], its heads normed and padded.

        The model norms heads after their rotation. A rotation keeps their length, and this norm has
        no weight, so it may come first, which leaves the rotation to the attention's operator.
        """
        args, graph = self.args, self.graph
        padding = self.cached_head_dim(args) - args.head_dim
        if not (normed or padding):
            return x
        x = graph.add("Reshape", x, graph.integers(0, 0, heads, args.head_dim))
        if normed:
            x = from_activations(graph, x, self.options)
            ones = graph.constant(np.ones(args.head_dim), np.float32)
            x = rms_norm(graph, x, ones, args.rms_norm_eps)
            x = in_activations(graph, x, self.options)
        if padding:
            x = graph.add("Pad", x, graph.integers(0, padding), "", graph.integers(3))
        return str(graph.add("Reshape", x, graph.integers(0, 0, -1)))

    def _unpadded(self, x: str, heads: int) -> str:
        """x [batch, tokens, heads x cached_head_dim] without the padding of `_heads`."""
        args, graph = self.args, self.graph
        if self.cached_head_dim(args) == args.head_dim:
            return x
        x = graph.add("Reshape", x, graph.integers(0, 0, heads, -1))
        x = graph.add(
            "Slice", x, graph.integers(0), graph.integers(args.head_dim), graph.integers(3)
        )
        return str(graph.add("Reshape", x, graph.integers(0, 0, -1)))
