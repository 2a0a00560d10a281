"""What training adds to the PyTorch reference: its loss, its INT4 rounding, its optimiser step.

Written from docs/training.md and the paper's recipe, and without a line in common with `train/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mobilemoe_mlx.compare.torch_model import Output, TorchMobileMoE
from mobilemoe_mlx.config import GROUP_SIZE

import torch  # isort: skip  (after torch_model, which explains a missing PyTorch)
import torch.nn.functional as F  # isort: skip
from torch import Tensor  # isort: skip

# Used in float32 whatever the model's type.
_FLOAT32 = ("router.weight", "expert_bias")
# Stored as they are, or in bfloat16, by an INT4 checkpoint; all else is packed.
_ROUNDED_TO_BFLOAT16 = ("norm.weight", "expert_bias")
_UNROUNDED = ("router.weight",)


class TorchLoss(NamedTuple):
    """A batch's loss, and what it came from."""

    objective: Tensor  # what is differentiated: the cross-entropy and the router's z-loss
    cross_entropy: float  # mean over targets, nats
    output: Output


def training_loss(
    model: TorchMobileMoE,
    tokens: Tensor,
    *,
    z_loss: float,
    dtype: torch.dtype = torch.float32,
    quantize: bool = False,
) -> TorchLoss:
    """The loss on tokens int64 [rows, tokens + 1], each position's target being the next token.

    Parameters are float32 masters; the forward pass uses them in `dtype` and, with `quantize`,
    rounded to INT4 (and norms and selection biases to bfloat16) with gradients that pass straight.
    z-loss: the squared log-sum-exp of the router's logits, mean over tokens, summed over layers.
    """
    forms = {
        name: forward_form(name, parameter, dtype, quantize)
        for name, parameter in model.named_parameters()
    }
    output: Output = torch.func.functional_call(model, forms, (tokens[:, :-1],), tie_weights=False)
    logits = output.logits.flatten(0, 1).float()
    cross_entropy = F.cross_entropy(logits, tokens[:, 1:].flatten())
    routed = [r.logits for r in output.routing if r.logits.shape[-1]]
    z = sum((x.logsumexp(-1).square().mean() for x in routed), torch.zeros(()))
    return TorchLoss(cross_entropy + z_loss * z, cross_entropy.item(), output)


def forward_form(name: str, weight: Tensor, dtype: torch.dtype, quantize: bool) -> Tensor:
    """A float32 master weight as the forward pass of `training_loss` uses it."""
    if quantize and not name.endswith(_UNROUNDED):
        is_small = name.endswith(_ROUNDED_TO_BFLOAT16)
        weight = _straight_through(weight, _bfloat16(weight) if is_small else _int4(weight))
    return weight if name.endswith(_FLOAT32) else weight.to(dtype)


def _straight_through(weight: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `weight`; exactly, with no rounding of the sum."""
    return StraightThrough.apply(weight, rounded)


class StraightThrough(torch.autograd.Function):
    """Gives its second argument, and the gradient to its first."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _bfloat16(weight: Tensor) -> Tensor:
    return weight.detach().bfloat16().float()


def _int4(weight: Tensor) -> Tensor:
    """Symmetric INT4 in groups along the last axis, with float16 scales that clip nothing."""
    groups = weight.detach().unflatten(-1, (-1, GROUP_SIZE))
    scale = torch.maximum(groups.amax(-1, True) / 7, groups.amin(-1, True) / -8).half().float()
    codes = torch.where(scale > 0, groups / scale, 0.0).round().clamp(-8, 7)
    return (codes * scale).flatten(-2)


def trained(model: TorchMobileMoE) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """What a gradient reaches: all but the selection biases."""
    for name, parameter in model.named_parameters():
        if not name.endswith("expert_bias"):
            yield name, parameter


class TorchStep(NamedTuple):
    """What one step measured."""

    cross_entropy: float
    grad_norm: float  # before clipping
    experts: list[Tensor]  # per layer int64 [tokens, slots]
    biased: list[Tensor]  # per layer float32 [tokens, experts]: what the selection sorts by
    dropped: float  # share of the choices whose expert had no room


class TorchTrainer:
    """AdamW with decay on matrices only, clipping, and selection biases that follow the load."""

    def __init__(
        self,
        model: TorchMobileMoE,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        clip_norm: float,
        z_loss: float,
        bias_update_rate: float,
        quantize: bool,
    ) -> None:
        self.model = model.train()
        for _, parameter in trained(model):
            parameter.requires_grad_(True)
        parameters = [p for _, p in trained(model)]
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps)
        self._parameters = parameters
        self._clip_norm, self._z_loss, self._quantize = clip_norm, z_loss, quantize
        self._bias_update_rate = bias_update_rate

    def run(self, tokens: Tensor, rate: float) -> TorchStep:
        """One step on tokens int64 [rows, tokens + 1] at a learning rate."""
        loss = training_loss(self.model, tokens, z_loss=self._z_loss, quantize=self._quantize)
        self._optimizer.zero_grad()
        loss.objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        routing = [r for r in loss.output.routing if r.logits.shape[-1]]
        with torch.no_grad():
            routed = [x for x in self.model.model.layers if not x.feed_forward.is_dense]
            for layer, decision in zip(routed, routing, strict=True):
                load = decision.experts.flatten().bincount(minlength=decision.biased.shape[-1])
                mean = load.float().mean()
                bias = layer.feed_forward.expert_bias
                bias += self._bias_update_rate * torch.sign(mean - load.float())
        return TorchStep(
            loss.cross_entropy,
            norm.item(),
            [r.experts for r in routing],
            [r.biased for r in routing],
            loss.output.dropped,
        )
