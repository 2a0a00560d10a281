"""Nodes of our operators with random weights, and what they compute in float64."""

from __future__ import annotations

from typing import Any

import kernel_reference as reference
import numpy as np
from kernel_reference import MoeTensors, Packed, random_int4
from ort_nodes import Node

EPS = 1e-5


def packed(name: str, weight: Packed) -> dict[str, np.ndarray]:
    return {f"{name}_codes": weight.codes, f"{name}_scales": weight.scales}


def feed_forward(m: MoeTensors, norm: np.ndarray, name: str = "norm") -> dict[str, np.ndarray]:
    return {
        name: norm,
        "router": m.router,
        "expert_bias": m.expert_bias,
        **packed("gate_up", m.gate_up),
        **packed("down", m.down),
        **packed("shared_gate", m.shared_gate),
        **packed("shared_up", m.shared_up),
        **packed("shared_down", m.shared_down),
    }


def moe_node(m: MoeTensors, norm: np.ndarray, slots: int, **attributes: Any) -> Node:
    settings = {
        "experts_per_token": slots,
        "routed_scaling_factor": 2.5,
        "norm_eps": EPS,
        "precision": "exact",
    }
    weights = feed_forward(m, norm)
    return Node("MoE", settings | attributes, {"x": np.float32}, weights, {"y": np.float32})


class Layer:
    """A random decoder layer, and what it computes in float64."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, qk_norm: bool) -> None:
        rng = self.rng = np.random.default_rng(heads)
        self.heads, self.kv_heads, self.head_dim, self.qk_norm = heads, kv_heads, head_dim, qk_norm
        self.d, self.context, self.slots = 96, 400, 2
        width, kv_width = heads * head_dim, kv_heads * head_dim
        self.linears = {
            name: random_int4(rng, rows, columns)
            for name, rows, columns in (
                ("q", width, self.d),
                ("k", kv_width, self.d),
                ("v", kv_width, self.d),
                ("o", self.d, width),
            )
        }
        self.moe = reference.random_moe(rng, self.d, 64, 160, 7)
        self.norms = (1 + 0.1 * rng.standard_normal((2, self.d))).astype(np.float32)
        self.periods = 500.0 ** (np.arange(head_dim // 2) * 2 / head_dim)

    def node(self, cache: type, in_place: bool = False, **attributes: Any) -> Node:
        angles = np.arange(self.context)[:, None] / self.periods
        rotation = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        settings = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "qk_norm": int(self.qk_norm),
            "experts_per_token": self.slots,
            "routed_scaling_factor": 2.5,
            "norm_eps": EPS,
            "precision": "exact",
        }
        weights = {"rotation": rotation, "input_norm": self.norms[0]}
        for name, weight in self.linears.items():
            weights |= packed(name, weight)
        weights |= feed_forward(self.moe, self.norms[1], "post_attention_norm")
        past = {"past_key": cache, "past_value": cache}
        present = {"present_key": cache, "present_value": cache}
        return Node(
            "DecoderLayer",
            settings | attributes,
            {"x": np.float32, "attention_mask": np.int64, **past},
            weights,
            {"y": np.float32, **present},
            dict(zip(present, past, strict=True)) if in_place else {},
        )

    def empty(self, batch: int, rows: int, dtype: type) -> np.ndarray:
        return np.full((batch, self.kv_heads, rows, self.head_dim), np.nan, dtype)

    def wanted(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x [T, d] -> (y, keys and values [kv_heads, T, head_dim])."""
        at = np.arange(len(x))
        x = x.astype(np.float64)
        normed = reference.rms_norm(x, EPS) * self.norms[0]
        q, k, v = (
            (normed @ self.linears[name].values.T).reshape(len(x), -1, self.head_dim)
            for name in "qkv"
        )
        q, k = (reference.rotate(a, at, self.periods) for a in (q, k))
        if self.qk_norm:
            q, k = (reference.rms_norm(a, EPS) for a in (q, k))
        k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
        mixed = reference.attention(q, k, v, 0).reshape(len(x), -1)
        x = x + mixed @ self.linears["o"].values.T
        normed = reference.rms_norm(x, EPS) * self.norms[1]
        return x + reference.moe_ffn(self.moe, normed, self.slots, True, 2.5)[0], k, v
