"""The training loss: cross-entropy in chunks, plus the router z-loss."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mobilemoe_mlx.data.packing import PADDING, document_attention_mask
from mobilemoe_mlx.linux_cpu.exponential import logsumexp, softmax_parts
from mobilemoe_mlx.model import LayerTrace, Model
from mobilemoe_mlx.train.balancing import expert_counts


class LossSums(NamedTuple):
    """Sums over one micro-batch, so that micro-batches and processes add up exactly."""

    cross_entropy: mx.array  # float32 scalar, over the targets that count
    z: mx.array  # float32 scalar, over real tokens and layers
    counts: mx.array  # float32 [layers, experts], real tokens that chose each expert


def loss_sums(
    model: Model,
    inputs: mx.array,
    targets: mx.array,
    loss_mask: mx.array,
    documents: mx.array,
    *,
    document_mask: bool = False,
    activation_checkpointing: bool = False,
    chunk: int = 2048,
) -> LossSums:
    """Forward pass and sums of the losses.

    inputs, targets, documents int [rows, tokens]; loss_mask float [rows, tokens], 1 where the
    target counts. `chunk`: tokens whose logits exist at one time.
    """
    trace: list[LayerTrace] = []
    hidden = model.model(
        inputs,
        mask=document_attention_mask(documents) if document_mask else None,
        trace=trace,
        wrap=nn.utils.checkpoint if activation_checkpointing else None,
    )
    real = (documents != PADDING).flatten()
    z = mx.array(0.0)
    counts = []
    for layer in trace:
        logits = layer.routing.logits
        z = z + (mx.square(logsumexp(logits)) * real).sum()
        counts.append(expert_counts(layer.routing.experts, real, logits.shape[-1]))
    cross_entropy = cross_entropy_sum(model, hidden, targets, loss_mask, chunk)
    return LossSums(cross_entropy, z, mx.stop_gradient(mx.stack(counts)))


def cross_entropy_sum(
    model: Model, hidden: mx.array, targets: mx.array, loss_mask: mx.array, chunk: int
) -> mx.array:
    """Summed cross-entropy of `targets` under the tied head, float32, `chunk` tokens at a time.

    hidden [rows, tokens, features]; targets and loss_mask [rows, tokens].
    """
    hidden, targets, loss_mask = hidden.flatten(0, 1), targets.flatten(), loss_mask.flatten()

    @mx.custom_function
    def head(weight: mx.array, hidden: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        total = mx.array(0.0)
        d_weight = mx.zeros(weight.shape, mx.float32)
        d_hidden = []
        for start in range(0, targets.size, chunk):
            part = slice(start, min(start + chunk, targets.size))
            loss, d_w, d_h = _loss_and_gradients(
                weight, hidden[part], targets[part], loss_mask[part]
            )
            total, d_weight = total + loss, d_weight + d_w
            d_hidden.append(d_h)
        return total, d_weight.astype(weight.dtype), mx.concatenate(d_hidden)

    @head.vjp
    def head_vjp(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, ...],
        outputs: tuple[mx.array, ...],
    ) -> tuple[mx.array, mx.array]:
        _, d_weight, d_hidden = outputs
        scale = cotangents[0]
        return d_weight * scale.astype(d_weight.dtype), d_hidden * scale.astype(d_hidden.dtype)

    return head(model.model.embed_tokens.weight, hidden)[0]


def _loss_and_gradients(
    weight: mx.array, hidden: mx.array, targets: mx.array, loss_mask: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Summed loss of the head and its gradients for weight [vocabulary, features] and hidden.

    The weight's gradient is float32: in bfloat16 a frequent target's many additions round away.
    Computed together, so that no logits (at 128,256 entries a step's largest tensor by far) are
    kept or computed again, each exponential is taken once, and no one-hot matrix is built.
    """
    logits = (hidden @ weight.T).astype(mx.float32)
    exponentials, total, top = softmax_parts(logits)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)
    loss = ((mx.log(total) + top - chosen).squeeze(-1) * loss_mask).sum()
    mask = loss_mask[:, None]
    # d loss / d logits = (softmax - one-hot) x mask, the softmax as exponentials / total.
    weighted = (hidden * (mask / total)).astype(hidden.dtype)
    exponentials = exponentials.astype(hidden.dtype)
    d_weight = (exponentials.T @ weighted).astype(mx.float32).at[targets].add(-hidden * mask)
    d_hidden = (exponentials @ weight) * (mask / total) - weight[targets] * mask
    return loss, d_weight, d_hidden.astype(hidden.dtype)
