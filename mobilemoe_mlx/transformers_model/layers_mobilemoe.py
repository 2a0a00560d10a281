"""The layers of MobileMoE in PyTorch: rotation, attention, router, experts.

Written for reading and for experiments, not for speed: experts are computed one after another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

# Relative, as transformers asks of files that lie in a checkpoint folder.
from .configuration_mobilemoe import MobileMoEConfig  # noqa: TID252
from .int4_mobilemoe import Int4Linear, Int4Module, unpack_int4  # noqa: TID252


class MobileMoEExperts(nn.Module):
    """The routed experts, [experts, in, out] as published; gate is the first half of gate_up."""

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__()
        experts, hidden = config.num_local_experts, config.hidden_size
        width = config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, hidden, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, hidden))

    def matrices(self, expert: Any) -> tuple[Tensor, Tensor]:
        """(gate_up, down) of an expert, or of a slice of them."""
        return self.gate_up_proj[expert], self.down_proj[expert]

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x [tokens, hidden], its experts and their weights [tokens, k] -> [tokens, hidden]."""
        total = torch.zeros_like(x)
        for expert in experts.unique().tolist():
            token, slot = torch.where(experts == expert)
            gate_up, down = (matrix.to(x.dtype) for matrix in self.matrices(expert))
            gate, up = (x[token] @ gate_up).chunk(2, dim=-1)
            y = (F.silu(gate) * up) @ down
            total = total.index_add(0, token, y * weights[token, slot, None].to(x.dtype))
        return total


class Int4Experts(Int4Module, MobileMoEExperts):
    """The routed experts in INT4; here groups lie along out."""

    def __init__(self, config: MobileMoEConfig) -> None:
        nn.Module.__init__(self)
        experts, hidden = config.num_local_experts, config.hidden_size
        width = config.intermediate_size
        self.add_int4("gate_up_qweight", "gate_up_scale", experts, hidden, 2 * width)
        self.add_int4("down_qweight", "down_scale", experts, width, hidden)

    def matrices(self, expert: Any) -> tuple[Tensor, Tensor]:
        """(gate_up, down) in float32 of an expert, or of a slice of them."""
        gate_up = unpack_int4(self.gate_up_qweight[expert], self.gate_up_scale[expert])
        return gate_up, unpack_int4(self.down_qweight[expert], self.down_scale[expert])


def linear(config: MobileMoEConfig, in_features: int, out_features: int) -> nn.Module:
    """A linear map of the configuration's layout."""
    if config.quantization is not None:
        return Int4Linear(in_features, out_features)
    return nn.Linear(in_features, out_features, bias=False)


class MobileMoERMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) x weight, in float32, returned in x's type."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (unit_rms(x.float(), self.eps) * self.weight.float()).to(x.dtype)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x over the root mean square of its last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rope_frequencies(config: MobileMoEConfig) -> list[float]:
    """Radians per position of each pair of a head [head_dim / 2].

    llama3's rule: wavelengths above original / low_freq_factor are stretched by `factor`, those
    below original / high_freq_factor are kept, and between them (there is nothing between where
    both are 1, as published) the two are blended.
    """
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "llama3"):
        raise ValueError(f"config.json: RoPE of the type {kind!r} is not MobileMoE's.")
    theta = rope.get("rope_theta", config.default_theta)
    plain = [theta ** (-2 * pair / config.head_dim) for pair in range(config.head_dim // 2)]
    if kind == "default":
        return plain
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    frequencies = []
    for frequency in plain:
        turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
        if turns < low:
            kept = 0.0
        elif turns > high:
            kept = 1.0
        else:
            kept = (turns - low) / (high - low) if high > low else 1.0
        frequencies.append(kept * frequency + (1 - kept) * frequency / rope["factor"])
    return frequencies


def rotations(position_ids: Tensor, frequencies: list[float]) -> tuple[Tensor, Tensor]:
    """Positions [batch, tokens] -> cosines and sines, float32 [batch, 1, tokens, pairs].

    Angles are formed in float64 where the device has it: in float32 those of position 8,000 are
    off by up to 5e-4.
    """
    device = position_ids.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    rates = torch.tensor(frequencies, dtype=exact, device=device)
    angles = position_ids.to(exact)[:, None, :, None] * rates
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the adjacent pairs (x[2i], x[2i + 1]) of x [batch, heads, tokens, head_dim]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * cosines - odd * sines, even * sines + odd * cosines)
    return torch.stack(turned, dim=-1).flatten(-2)


def causal_mask(attention_mask: Tensor | None, length: int, past: int, device: Any) -> Tensor:
    """Which keys each new token sees: bool [batch or 1, 1, length, past + length].

    `attention_mask` [batch, past + length]: 0 or False where a position is padding, left or right.
    A token always sees itself, so that rows of padding are no division by zero.
    """
    total = past + length
    query = torch.arange(past, total, device=device)[:, None]
    key = torch.arange(total, device=device)
    mask = (key <= query)[None, None]
    if attention_mask is None:
        return mask
    if attention_mask.dim() != 2 or attention_mask.shape[1] != total:
        raise ValueError(
            f"attention_mask is {list(attention_mask.shape)}; it must be [batch, {total}], one "
            "entry for each token of the cache and each new one."
        )
    present = attention_mask.to(device=device, dtype=torch.bool)[:, None, None, :]
    return mask & present | (key == query)


class MobileMoEAttention(nn.Module):
    """Causal grouped-query attention; q and k are normalised after their rotation, unweighted."""

    def __init__(self, config: MobileMoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        hidden, head_dim = config.hidden_size, config.head_dim
        query_dim = config.num_attention_heads * head_dim
        key_value_dim = config.num_key_value_heads * head_dim
        self.q_proj = linear(config, hidden, query_dim)
        self.k_proj = linear(config, hidden, key_value_dim)
        self.v_proj = linear(config, hidden, key_value_dim)
        self.o_proj = linear(config, query_dim, hidden)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: DynamicCache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """x [batch, tokens, hidden] -> (the same shape, the weights of eager attention)."""
        query = self._positioned(self.q_proj(x), rotation)
        key = self._positioned(self.k_proj(x), rotation)
        value = self._heads(self.v_proj(x))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        # Query head h reads key/value head h // groups.
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.config._attn_implementation == "eager":
            scores = query @ key.transpose(2, 3) / math.sqrt(self.config.head_dim)
            weights = scores.float().masked_fill(~mask, -math.inf).softmax(dim=-1).to(x.dtype)
            out = F.dropout(weights, dropout) @ value
        else:
            weights = None
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.o_proj(out.transpose(1, 2).flatten(2)), weights

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, tokens, heads x head_dim] -> [batch, heads, tokens, head_dim]."""
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def _positioned(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        heads = rotate(self._heads(x).float(), *rotation)
        if self.config.use_qk_norm:
            heads = unit_rms(heads, self.config.rms_norm_eps)
        return heads.to(x.dtype)


class MobileMoERouter(nn.Module):
    """Sigmoid scores, always in float32."""

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.num_local_experts, config.hidden_size, dtype=torch.float32)
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, expert_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [tokens, hidden] -> logits [tokens, experts], experts and their weights [tokens, k]."""
        logits = F.linear(x.float(), self.weight.float())
        scores = logits.sigmoid()
        # The bias chooses and does not weigh. A stable sort: of equals the lower index wins.
        ranking = (scores + expert_bias.float()).sort(dim=-1, descending=True, stable=True)
        experts = ranking.indices[:, : self.config.num_experts_per_tok]
        weights = scores.gather(-1, experts)
        if self.config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return logits, experts, weights * self.config.routed_scaling_factor


class MobileMoESharedExpert(nn.Module):
    """The SwiGLU expert that every token passes, unweighted."""

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.intermediate_size_mlp
        self.gate_proj = linear(config, hidden, width)
        self.up_proj = linear(config, hidden, width)
        self.down_proj = linear(config, width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MobileMoEFeedForward(nn.Module):
    """Routed experts plus the shared one; models for comparison have one kind alone."""

    def __init__(self, config: MobileMoEConfig) -> None:
        super().__init__()
        self.is_routed = config.num_local_experts > 0
        self.is_shared = config.intermediate_size_mlp > 0
        if self.is_routed:
            self.router = MobileMoERouter(config)
            bias = torch.zeros(config.num_local_experts, dtype=torch.float32)
            self.register_buffer("expert_bias", bias)  # training moves it without a gradient
            kind = MobileMoEExperts if config.quantization is None else Int4Experts
            self.experts = kind(config)
        if self.is_shared:
            self.shared_expert = MobileMoESharedExpert(config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [batch, tokens, hidden] -> (the same, router logits [batch x tokens, experts])."""
        if not self.is_routed:
            return self.shared_expert(x), None
        tokens = x.flatten(0, 1)
        logits, experts, weights = self.router(tokens, self.expert_bias)
        y = self.experts(tokens, experts, weights).view_as(x)
        return (y + self.shared_expert(x) if self.is_shared else y), logits


class MobileMoEDecoderLayer(nn.Module):
    """Pre-norm attention, then the pre-norm mixture of experts."""

    def __init__(self, config: MobileMoEConfig, layer_idx: int) -> None:
        super().__init__()
        # First, since a model's `dtype` is that of its first parameter.
        self.input_layernorm = MobileMoERMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MobileMoEAttention(config, layer_idx)
        self.post_attention_layernorm = MobileMoERMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = MobileMoEFeedForward(config)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: DynamicCache | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [batch, tokens, hidden] -> (the same shape, attention weights, router logits)."""
        y, attention = self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        x = x + y
        y, router_logits = self.feed_forward(self.post_attention_layernorm(x))
        return x + y, attention, router_logits
