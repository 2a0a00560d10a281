"""MobileMoE in plain PyTorch: the reference that the MLX model is compared with.

Written for reading, not for speed, and without a line in common with the MLX model: complex
rotations, an explicit softmax, a loop over experts. Parameters carry their published names.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from mobilemoe_mlx.config import RopeScaling
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.verify.config_reader import Config, Llama3Stretching

try:
    import torch
except ImportError:
    raise UserError(
        "The PyTorch reference needs PyTorch: install it from the mobilemoe-mlx checkout, "
        "pip install --editable '.[torch]'"
    ) from None

import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """One layer's decision for each token of the flattened batch."""

    logits: Tensor  # float32 [tokens, experts]
    biased: Tensor  # float32 [tokens, experts], what the selection sorts by
    experts: Tensor  # int64 [tokens, slots]
    weights: Tensor  # float32 [tokens, slots]
    fits: Tensor  # bool [tokens, slots]: the expert has room; else it adds nothing


class Output(NamedTuple):
    """Everything the comparison looks at."""

    logits: Tensor  # [batch, tokens, vocabulary]
    hidden: list[Tensor]  # per layer [batch, tokens, hidden], the residual stream after it
    routing: list[Routing]  # per layer

    @property
    def dropped(self) -> float:
        """The share of all choices whose expert had no room; of a dense model 0."""
        fits = torch.cat([decision.fits.flatten() for decision in self.routing])
        return 1 - fits.double().mean().item() if len(fits) else 0.0


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) x weight, computed in float32, returned in x's type."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (unit_rms(x.float(), self.eps) * self.weight.float()).to(x.dtype)


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """Divide the last axis by its root mean square."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rope_frequencies(
    head_dim: int, theta: float, scaling: Llama3Stretching | RopeScaling | None
) -> list[float]:
    """Radians per position of each rotated pair [head_dim / 2], pair by pair, by llama3's rule."""
    frequencies = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2 * pair / head_dim)
        if scaling is not None and scaling.rope_type == "llama3":
            wavelength = 2 * math.pi / frequency
            longest = scaling.original_max_position_embeddings / scaling.low_freq_factor
            shortest = scaling.original_max_position_embeddings / scaling.high_freq_factor
            if wavelength > longest:
                frequency /= scaling.factor
            elif wavelength > shortest:
                # Between: linear in original_max / wavelength, 0 at `longest`, 1 at `shortest`.
                turns = scaling.original_max_position_embeddings / wavelength
                width = scaling.high_freq_factor - scaling.low_freq_factor
                kept = (turns - scaling.low_freq_factor) / width
                frequency = kept * frequency + (1 - kept) * frequency / scaling.factor
        frequencies.append(frequency)
    return frequencies


def rotate(x: Tensor, frequencies: list[float]) -> Tensor:
    """Turn adjacent pairs of float32 x [batch, tokens, heads, head_dim] as complex numbers.

    Angles are formed in float64: at position 8,000 a float32 angle is off by 5e-4.
    """
    positions = torch.arange(x.shape[1], dtype=torch.float64)
    angles = torch.outer(positions, torch.tensor(frequencies, dtype=torch.float64))
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)  # [tokens, pairs]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns[None, :, None, :]).flatten(-2)


class Attention(nn.Module):
    """Causal grouped-query attention; rotation, q/k norm and softmax in float32."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.args = args
        self.q_proj = nn.Linear(args.hidden_size, args.query_dim, bias=False)
        self.k_proj = nn.Linear(args.hidden_size, args.key_value_dim, bias=False)
        self.v_proj = nn.Linear(args.hidden_size, args.key_value_dim, bias=False)
        self.o_proj = nn.Linear(args.query_dim, args.hidden_size, bias=False)
        self.frequencies = rope_frequencies(args.head_dim, args.rope_theta, args.rope_scaling)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, hidden] -> the same shape."""
        args, length = self.args, x.shape[1]
        query = self._positioned(self.q_proj(x))  # [batch, tokens, heads, head_dim]
        key = self._positioned(self.k_proj(x))
        value = self.v_proj(x).unflatten(-1, (-1, args.head_dim))
        # Query head h reads key/value head h // (heads / kv_heads).
        shared_by = args.num_attention_heads // args.num_key_value_heads
        key, value = (t.repeat_interleave(shared_by, dim=2) for t in (key, value))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key).float() / math.sqrt(args.head_dim)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1).to(x.dtype)
        return self.o_proj(torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(-2))

    def _positioned(self, x: Tensor) -> Tensor:
        heads = rotate(x.unflatten(-1, (-1, self.args.head_dim)).float(), self.frequencies)
        return (unit_rms(heads, self.args.rms_norm_eps) if self.args.use_qk_norm else heads).to(
            x.dtype
        )


class Router(nn.Module):
    """Sigmoid scores, always in float32."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.args = args
        self.weight = nn.Parameter(torch.zeros(args.num_local_experts, args.hidden_size))

    def forward(self, x: Tensor, expert_bias: Tensor) -> Routing:
        """x [tokens, hidden] -> Routing."""
        logits = F.linear(x.float(), self.weight.float())
        scores = logits.sigmoid()
        biased = (scores + expert_bias.float()).detach()
        # A stable sort, so that the lower index wins a tie.
        ranking = biased.sort(dim=-1, descending=True, stable=True).indices
        experts = ranking[:, : self.args.num_experts_per_tok]
        weights = scores.gather(-1, experts)
        if self.args.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        weights = weights * self.args.routed_scaling_factor
        return Routing(logits, biased, experts, weights, torch.ones_like(experts, dtype=torch.bool))


class Experts(nn.Module):
    """The routed experts, in the published layout [experts, in, out]."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        experts, hidden, width = args.num_local_experts, args.hidden_size, args.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.zeros(experts, hidden, 2 * width))
        self.down_proj = nn.Parameter(torch.zeros(experts, width, hidden))

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x [tokens, hidden] -> the weighted sum over each token's experts, same shape."""
        total = torch.zeros_like(x)
        for expert in routing.experts.unique().tolist():
            token, slot = torch.where((routing.experts == expert) & routing.fits)
            gate, up = (x[token] @ self.gate_up_proj[expert]).chunk(2, dim=-1)
            y = (F.silu(gate) * up) @ self.down_proj[expert]
            weight = routing.weights[token, slot, None].to(x.dtype)
            total = total.index_add(0, token, y * weight)
        return total


class SharedExpert(nn.Module):
    """The expert that every token passes, unweighted."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        hidden, width = args.hidden_size, args.intermediate_size_mlp
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared one; one kind may be absent."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.capacity_factor: float | None = None
        self.is_dense = args.num_local_experts == 0
        self.is_shared = args.intermediate_size_mlp > 0
        if not self.is_dense:
            self.router = Router(args)
            # A parameter only to be loaded by name: no gradient reaches it.
            bias = torch.zeros(args.num_local_experts)
            self.expert_bias = nn.Parameter(bias, requires_grad=False)
            self.experts = Experts(args)
        if self.is_shared:
            self.shared_expert = SharedExpert(args)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x [batch, tokens, hidden] -> (the same shape, the routing; of a dense layer empty)."""
        tokens = x.flatten(0, 1)
        if self.is_dense:
            none = torch.zeros(len(tokens), 0)
            return self.shared_expert(x), Routing(none, none, none.long(), none, none.bool())
        routing = self.router(tokens, self.expert_bias)
        if self.capacity_factor is not None and self.training:
            routing = routing._replace(fits=self._room(routing.experts, len(x)))
        total = self.experts(tokens, routing).view_as(x)
        return (total + self.shared_expert(x) if self.is_shared else total), routing

    def _room(self, experts: Tensor, rows: int) -> Tensor:
        """Which choices [tokens, slots] are among the first that their row sends to an expert."""
        assert self.capacity_factor is not None
        experts = experts.unflatten(0, (rows, -1))
        count = len(self.expert_bias)
        # Of the factor as it was written, and so in whole numbers.
        choices = experts[0].numel()
        capacity = min(math.ceil(Fraction(str(self.capacity_factor)) * choices / count), choices)
        fits = torch.zeros_like(experts, dtype=torch.bool)
        for row in range(rows):
            for expert in range(count):
                token, slot = torch.where(experts[row] == expert)
                fits[row, token[:capacity], slot[:capacity]] = True
        return fits.flatten(0, 1)


class DecoderLayer(nn.Module):
    """Pre-norm attention, then pre-norm mixture of experts."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.self_attn = Attention(args)
        self.post_attention_layernorm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.feed_forward = MixtureOfExperts(args)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x [batch, tokens, hidden] -> (the same shape, the routing)."""
        x = x + self.self_attn(self.input_layernorm(x))
        y, routing = self.feed_forward(self.post_attention_layernorm(x))
        return x + y, routing


class Decoder(nn.Module):
    """Embedding, layers and final norm (the published tensors' prefix `model.`)."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(args) for _ in range(args.num_hidden_layers))
        self.norm = RMSNorm(args.hidden_size, args.rms_norm_eps)


class TorchMobileMoE(nn.Module):
    """The whole model, with its tied output head."""

    def __init__(self, args: Config) -> None:
        super().__init__()
        self.args = args
        self.model = Decoder(args)

    def limit_capacity(self, factor: float | None) -> None:
        """In training, an expert takes `factor` times its share of a row's tokens, the first."""
        for layer in self.model.layers:
            layer.feed_forward.capacity_factor = factor

    def forward(self, tokens: Tensor) -> Output:
        """tokens int64 [batch, tokens] -> Output."""
        x = self.model.embed_tokens(tokens)
        hidden, routing = [], []
        for layer in self.model.layers:
            x, decision = layer(x)
            hidden.append(x)
            routing.append(decision)
        logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight)
        return Output(logits, hidden, routing)
