"""A decoder by our own operators (coreml/kernel/ort), its layers whole.

Codes and scales go to them with the checkpoint's bytes and shapes.
"""

from __future__ import annotations

import numpy as np

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.onnx.graph import Graph
from mobilemoe_mlx.export.onnx.options import AccuracyLevel, ExportOptions
from mobilemoe_mlx.export.onnx.rotations import rotations
from mobilemoe_mlx.export.onnx.weights import Weights
from mobilemoe_mlx.onnx_folder import names
from mobilemoe_mlx.tensor_names import packed_names

DOMAIN = "mobilemoe"
VERSION = 1

# What activations are rounded to in the operators' products, as in the CPU engine. int16 is near
# exact, and what is taken where nothing is asked for.
PRECISIONS: dict[AccuracyLevel, str] = {0: "int16", 1: "exact", 4: "int8"}


class FusedBody:
    """Builds embedding, layers and head into `graph`, an operator each."""

    def __init__(self, graph: Graph, weights: Weights, options: ExportOptions) -> None:
        self.graph, self.weights, self.args = graph, weights, weights.args
        self.options = options

    @staticmethod
    def cached_head_dim(args: ModelArgs) -> int:
        """Features of a head in the cache."""
        return args.head_dim

    def embed(self) -> str:
        """-> the residual stream before the first layer, float32 [batch, tokens, hidden]."""
        self.graph.within("embed_tokens")
        self._embedding = _int4(self.weights, "model.embed_tokens")
        table = np.concatenate(rotations(self.args, self.options.context), axis=1)
        self._rotations = self.weights.put("rotations", [table], table.shape)
        return str(self.graph.add("Embedding", names.INPUT_IDS, *self._embedding, domain=DOMAIN))

    def layer(self, index: int, h: str) -> str:
        """The residual stream after a layer."""
        args, weights, graph = self.args, self.weights, self.graph
        graph.within(f"layers.{index}")
        at = f"model.layers.{index}"
        out, _, _ = graph.add(
            "DecoderLayer",
            h,
            names.ATTENTION_MASK,
            names.PAST_KEY % index,
            names.PAST_VALUE % index,
            self._rotations,
            weights.float32(f"{at}.input_layernorm.weight"),
            *(part for n in "qkvo" for part in _int4(weights, f"{at}.self_attn.{n}_proj")),
            *_feed_forward(weights, index),
            outputs=[names.hidden(index), names.PRESENT_KEY % index, names.PRESENT_VALUE % index],
            domain=DOMAIN,
            heads=args.num_attention_heads,
            kv_heads=args.num_key_value_heads,
            head_dim=args.head_dim,
            qk_norm=int(args.use_qk_norm),
            experts_per_token=args.num_experts_per_tok,
            norm_topk_prob=int(args.norm_topk_prob),
            routed_scaling_factor=args.routed_scaling_factor,
            norm_eps=args.rms_norm_eps,
            precision=PRECISIONS[self.options.accuracy_level],
        )
        return str(out)

    def logits(self, h: str) -> None:
        """The output `logits` of h [batch, rows, hidden]."""
        self.graph.add(
            "Head",
            h,
            self.weights.float32("model.norm.weight"),
            *self._embedding,
            outputs=[names.LOGITS],
            domain=DOMAIN,
            norm_eps=self.args.rms_norm_eps,
            precision=PRECISIONS[self.options.accuracy_level],
        )


def _feed_forward(weights: Weights, layer: int) -> list[str]:
    """The second half's weights, in the order of the operators' inputs."""
    at = f"model.layers.{layer}"
    experts, shared = f"{at}.feed_forward.experts", f"{at}.feed_forward.shared_expert"
    return [
        weights.float32(f"{at}.post_attention_layernorm.weight"),
        weights.float32(f"{at}.feed_forward.router.weight"),
        weights.float32(f"{at}.feed_forward.expert_bias"),
        *(
            part
            for name in ("gate_up", "down")
            for part in _int4(weights, f"{experts}.{name}_proj")
        ),
        *(part for n in ("gate", "up", "down") for part in _int4(weights, f"{shared}.{n}_proj")),
    ]


def _int4(weights: Weights, parameter: str) -> list[str]:
    """Codes and scales of a parameter."""
    return [weights.unchanged(name) for name in packed_names(parameter)]
