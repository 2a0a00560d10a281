"""The MobileMoE decoder, with mlx-lm's interface: `Model(args)(tokens, cache) -> logits`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.cache import KVCache

from mobilemoe_mlx import int4, linux_cpu
from mobilemoe_mlx.capacity import within_capacity
from mobilemoe_mlx.config import NORMALIZE_EPS, ModelArgs
from mobilemoe_mlx.experts import Experts
from mobilemoe_mlx.linux_cpu.attention import causal_attention
from mobilemoe_mlx.linux_cpu.exponential import sigmoid
from mobilemoe_mlx.linux_cpu.swiglu import swiglu
from mobilemoe_mlx.linux_cpu.top_k import top_k
from mobilemoe_mlx.tensor_names import mlx_parts

__all__ = ["Model", "ModelArgs"]


class RMSNorm(nn.Module):
    """Root-mean-square norm whose weight may be stored in another type than x's."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((dims,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight.astype(x.dtype), self.eps)


def rope_periods(args: ModelArgs) -> np.ndarray:
    """Period / 2 pi of each rotated pair, float32 [head_dim / 2], after the llama3 stretching."""
    periods = args.rope_theta ** (np.arange(0, args.head_dim, 2, dtype=np.float64) / args.head_dim)
    scaling = args.rope_scaling
    if scaling is None or scaling.rope_type == "default":
        return periods.astype(np.float32)
    turns = scaling.original_max_position_embeddings / (2 * np.pi * periods)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # With low == high (the published config) the blend between them has no width.
    blend = (turns - low) / (high - low) if high > low else (turns >= low).astype(np.float64)
    blend = np.clip(blend, 0.0, 1.0)  # 0: divide the frequency by factor, 1: keep it
    frequencies = (1 - blend) / (periods * scaling.factor) + blend / periods
    return (1 / frequencies).astype(np.float32)


class Attention(nn.Module):
    """Grouped-query attention: RoPE on adjacent pairs, then a weightless norm of q and k."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.n_heads = args.num_attention_heads
        self.n_kv_heads = args.num_key_value_heads
        self.head_dim = args.head_dim
        self.qk_norm_eps = args.rms_norm_eps if args.use_qk_norm else None
        self.q_proj = nn.Linear(args.hidden_size, args.query_dim, bias=False)
        self.k_proj = nn.Linear(args.hidden_size, args.key_value_dim, bias=False)
        self.v_proj = nn.Linear(args.hidden_size, args.key_value_dim, bias=False)
        self.o_proj = nn.Linear(args.query_dim, args.hidden_size, bias=False)
        self._periods = mx.array(rope_periods(args))

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """x [batch, tokens, hidden] -> the same shape; extends `cache`."""
        batch, length, _ = x.shape

        def heads(y: mx.array, count: int) -> mx.array:
            return y.reshape(batch, length, count, self.head_dim).transpose(0, 2, 1, 3)

        offset = cache.offset if cache is not None else 0
        queries = self.rotate(heads(self.q_proj(x), self.n_heads), offset)
        keys = self.rotate(heads(self.k_proj(x), self.n_kv_heads), offset)
        values = heads(self.v_proj(x), self.n_kv_heads)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        scale = self.head_dim**-0.5
        if cache is None and length > 1 and linux_cpu.applies_to(queries, keys, values):
            given = mask if isinstance(mask, mx.array) else None  # else the causal one
            out = causal_attention(queries, keys, values, scale, given)
        else:
            out = scaled_dot_product_attention(
                queries, keys, values, cache=cache, scale=scale, mask=mask
            )
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    def rotate(self, x: mx.array, offset: Any) -> mx.array:
        """x [batch, heads, tokens, head_dim], turned by its positions and normed.

        `offset`: the first token's position; int32 [batch]: of each text.
        """
        x = mx.fast.rope(
            x,
            self.head_dim,
            traditional=True,  # adjacent pairs
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self._periods,
        )
        return x if self.qk_norm_eps is None else mx.fast.rms_norm(x, None, self.qk_norm_eps)


class Routing(NamedTuple):
    """The router's decision for each token."""

    logits: mx.array  # float32 [tokens, experts]; a dense layer has none
    experts: mx.array  # uint32 [tokens, slots], by falling biased score
    weights: mx.array  # float32 [tokens, slots]
    fits: mx.array  # bool [tokens, slots]: the expert has room; else it adds nothing


class Router(nn.Module):
    """Sigmoid scores in float32; experts are chosen by biased, weighted by unbiased score."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        bound = args.hidden_size**-0.5
        shape = (args.num_local_experts, args.hidden_size)
        self.weight = mx.random.uniform(-bound, bound, shape)
        self.top_k = args.num_experts_per_tok
        self.normalise = args.norm_topk_prob
        self.scaling = args.routed_scaling_factor

    def __call__(self, x: mx.array, expert_bias: mx.array) -> Routing:
        """x [tokens, hidden], expert_bias [experts] -> Routing; ties go to the lower index."""
        return self.select(self.logits(x), expert_bias)

    def logits(self, x: mx.array) -> mx.array:
        """x [tokens, hidden] -> float32 [tokens, experts]."""
        return x.astype(mx.float32) @ self.weight.astype(mx.float32).T

    def select(self, logits: mx.array, expert_bias: mx.array) -> Routing:
        """The decision by `logits` float32 [tokens, experts] and expert_bias [experts]."""
        scores = sigmoid(logits)
        biased = scores + expert_bias.astype(mx.float32)
        experts = mx.stop_gradient(top_k(mx.stop_gradient(biased), self.top_k))
        weights = mx.take_along_axis(scores, experts, axis=-1)
        if self.normalise:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + NORMALIZE_EPS)
        return Routing(logits, experts, weights * self.scaling, mx.ones(experts.shape, mx.bool_))


class SharedExpert(nn.Module):
    """The expert that every token passes: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class MixtureOfExperts(nn.Module):
    """Weighted sum of the selected routed experts, plus the shared expert.

    Without a shared expert the sum alone; in a dense model the shared expert alone.
    """

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        # Set by training alone; None, as everywhere else: every token reaches its experts.
        self.capacity_factor: float | None = None
        if args.num_local_experts:
            self.router = Router(args)
            self.expert_bias = mx.zeros((args.num_local_experts,))
            self.experts = Experts(args.hidden_size, args.intermediate_size, args.num_local_experts)
            # Moved by the balancing rule after each step, never by a gradient.
            self.freeze(keys=["expert_bias"], recurse=False)
        if args.intermediate_size_mlp:
            self.shared_expert = SharedExpert(args.hidden_size, args.intermediate_size_mlp)

    def __call__(self, x: mx.array) -> tuple[mx.array, Routing]:
        """x [batch, tokens, hidden] -> (the same shape, the routing of the flattened tokens)."""
        flat = x.flatten(0, -2)
        if "router" not in self:
            none = mx.zeros((len(flat), 0))
            nothing = Routing(none, none.astype(mx.uint32), none, none.astype(mx.bool_))
            return self.shared_expert(x), nothing
        routing = self.router(flat, self.expert_bias)
        experts, weights = routing.experts, routing.weights
        if self.capacity_factor is not None and self.training:
            by_row = experts.reshape(*x.shape[:-1], -1)
            fits = within_capacity(by_row, len(self.expert_bias), self.capacity_factor)
            routing = routing._replace(fits=fits.reshape(experts.shape))
            weights = mx.where(routing.fits, weights, 0.0)
        y = self.experts.weighted_sum(flat, experts, weights).reshape(x.shape)
        return (y + self.shared_expert(x) if "shared_expert" in self else y), routing


class DecoderLayer(nn.Module):
    """Pre-norm attention and mixture of experts, each added to the residual stream."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.self_attn = Attention(args)
        self.feed_forward = MixtureOfExperts(args)
        self.input_layernorm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(args.hidden_size, args.rms_norm_eps)

    def __call__(
        self, x: mx.array, mask: Any = None, cache: Any = None
    ) -> tuple[mx.array, Routing]:
        """x [batch, tokens, hidden] -> (the same shape, the layer's routing)."""
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        y, routing = self.feed_forward(self.post_attention_layernorm(x))
        return x + y, routing


class LayerTrace(NamedTuple):
    """What one decoder layer computed, for training and for numerical comparison."""

    hidden: mx.array  # [batch, tokens, hidden], the residual stream after the layer
    routing: Routing


class MobileMoEModel(nn.Module):
    """Embedding, decoder layers and final norm."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [DecoderLayer(args) for _ in range(args.num_hidden_layers)]
        self.norm = RMSNorm(args.hidden_size, args.rms_norm_eps)

    def __call__(
        self,
        tokens: mx.array,
        cache: list[Any] | None = None,
        mask: mx.array | None = None,
        trace: list[LayerTrace] | None = None,
        wrap: Callable[[DecoderLayer], Callable[..., Any]] | None = None,
    ) -> mx.array:
        """tokens int [batch, tokens] -> normed hidden states [batch, tokens, hidden].

        `mask`: bool [batch, 1, tokens, tokens] instead of the causal one (packed documents).
        `trace`: a list that receives a LayerTrace a layer. `wrap`: replaces the call of each
        layer (activation checkpointing).
        """
        h = self.embed_tokens(tokens)
        caches = cache if cache is not None else [None] * len(self.layers)
        attention_mask = create_attention_mask(h, caches[0]) if mask is None else mask
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            call = layer if wrap is None else wrap(layer)
            h, routing = call(h, attention_mask, layer_cache)
            if trace is not None:
                trace.append(LayerTrace(h, Routing(*routing)))
        return self.norm(h)


class Model(nn.Module):
    """MobileMoE with its tied output head; mlx-lm's generation, caches and server work on it."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = MobileMoEModel(args)

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        """tokens int [batch, tokens] -> logits [batch, tokens, vocabulary]."""
        return self.logits(self.model(tokens, cache))

    def logits(self, hidden: mx.array) -> mx.array:
        """Normed hidden states [..., hidden] -> logits [..., vocabulary]: the tied head."""
        return self.model.embed_tokens.as_linear(hidden)

    @property
    def layers(self) -> list[DecoderLayer]:
        return self.model.layers

    def make_cache(self) -> list[KVCache]:
        """A fresh key/value cache for each layer."""
        return [KVCache() for _ in self.layers]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Tensors under published names and forms to this module's; its own names stay.

        Published experts `gate_up_proj` gain `.weight`; packed `X.qweight` + `X.weight_scale`
        (experts: `X_qweight` + `X_scale`) become MLX's `X.weight`, `X.scales`, `X.biases`, exactly.
        """
        out: dict[str, mx.array] = {}
        for name, tensor in weights.items():
            for target, part in mlx_parts(name).items():
                out[target] = int4.AFFINE_PARTS[part](tensor)
        return out
