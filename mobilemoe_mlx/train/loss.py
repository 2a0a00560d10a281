"""The training loss: cross-entropy in chunks, plus the router z-loss."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mobilemoe_mlx.data.packing import PADDING, document_attention_mask
from mobilemoe_mlx.linux_cpu import int4_product
from mobilemoe_mlx.linux_cpu.exponential import logsumexp, softmax_parts
from mobilemoe_mlx.lora.low_rank import float_matrix
from mobilemoe_mlx.model import LayerTrace, Model
from mobilemoe_mlx.train.balancing import expert_counts
from mobilemoe_mlx.train.recomputation import computed_again


class LossSums(NamedTuple):
    """Sums over one micro-batch, so that micro-batches and processes add up exactly."""

    cross_entropy: mx.array  # float32 scalar, over the targets that count
    z: mx.array  # float32 scalar, over real tokens and layers
    # float32 [layers, experts], real tokens that chose each expert; [0, 0] of a dense model
    counts: mx.array
    dropped: mx.array  # float32 [layers], those of the choices that had no room


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
        wrap=computed_again if activation_checkpointing else None,
    )
    real = (documents != PADDING).flatten()
    z = mx.array(0.0)
    counts, dropped = [], []
    for layer in trace:
        logits, experts, _, fits = layer.routing
        if not logits.shape[-1]:  # of a dense layer
            continue
        z = z + (mx.square(logsumexp(logits)) * real).sum()
        counts.append(expert_counts(experts, real, logits.shape[-1]))
        dropped.append(mx.logical_and(~fits, real[:, None]).sum().astype(mx.float32))
    cross_entropy = cross_entropy_sum(model, hidden, targets, loss_mask, chunk)
    all_counts = mx.stack(counts) if counts else mx.zeros((0, 0))
    all_dropped = mx.stack(dropped) if dropped else mx.zeros((0,))
    return LossSums(cross_entropy, z, mx.stop_gradient(all_counts), mx.stop_gradient(all_dropped))


def cross_entropy_sum(
    model: Model, hidden: mx.array, targets: mx.array, loss_mask: mx.array, chunk: int
) -> mx.array:
    """Summed cross-entropy of `targets` under the tied head, float32, `chunk` tokens at a time.

    hidden [rows, tokens, features]; targets and loss_mask [rows, tokens]. Of a frozen embedding,
    float or INT4, no gradient is formed.
    """
    hidden, targets, loss_mask = hidden.flatten(0, 1), targets.flatten(), loss_mask.flatten()
    starts = range(0, targets.size, chunk)
    parts = [slice(start, min(start + chunk, targets.size)) for start in starts]
    embedding = model.model.embed_tokens
    trained = embedding.trainable_parameters()
    if not trained:
        return _frozen_head_loss(embedding, hidden, targets, loss_mask, parts)
    if trained.keys() == {"weight"}:
        return _trained_head_loss(embedding.weight, hidden, targets, loss_mask, parts)
    return _adapted_head_loss(embedding, hidden, targets, loss_mask, parts)


def _trained_head_loss(
    weight: mx.array,
    hidden: mx.array,
    targets: mx.array,
    loss_mask: mx.array,
    parts: list[slice],
) -> mx.array:
    """Differentiable in the embedding's weight and hidden."""

    @mx.custom_function
    def head(weight: mx.array, hidden: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        total = mx.array(0.0)
        d_weight = mx.zeros(weight.shape, mx.float32)
        d_hidden: list[mx.array] = []
        for part in parts:
            # All of a chunk before the next: MLX would begin all of them before it ends one.
            rows = mx.depends(hidden[part], [total, d_weight, *d_hidden[-1:]])
            loss, d_w, d_h = _loss_and_gradients(weight, rows, targets[part], loss_mask[part])
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

    return head(weight, hidden)[0]


def _frozen_head_loss(
    embedding: nn.Module,
    hidden: mx.array,
    targets: mx.array,
    loss_mask: mx.array,
    parts: list[slice],
) -> mx.array:
    """Differentiable in hidden alone."""

    @mx.custom_function
    def head(hidden: mx.array) -> tuple[mx.array, mx.array]:
        total = mx.array(0.0)
        d_hidden: list[mx.array] = []
        # Where INT4 is unpacked for its products: once for all chunks.
        unpacked = None
        if isinstance(embedding, nn.QuantizedEmbedding) and int4_product.is_faster(hidden):
            unpacked = float_matrix(embedding)
        for part in parts:
            # All of a chunk before the next, as above.
            rows = mx.depends(hidden[part], [total, *d_hidden[-1:]])
            logits = embedding.as_linear(rows) if unpacked is None else rows @ unpacked.T
            logits = logits.astype(mx.float32)
            loss, exponentials, scale = _loss_and_softmax(logits, targets[part], loss_mask[part])
            exponentials = exponentials.astype(hidden.dtype)
            if unpacked is None:
                product = _times_weight(embedding, exponentials)
            else:
                product = exponentials @ unpacked
            chosen = embedding(targets[part])
            d_h = product * scale - chosen * loss_mask[part][:, None]
            total = total + loss
            d_hidden.append(d_h.astype(hidden.dtype))
        return total, mx.concatenate(d_hidden)

    @head.vjp
    def head_vjp(
        primals: mx.array, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> mx.array:
        d_hidden = outputs[1]
        return d_hidden * cotangents[0].astype(d_hidden.dtype)

    return head(hidden)[0]


def _adapted_head_loss(
    embedding: nn.Module,
    hidden: mx.array,
    targets: mx.array,
    loss_mask: mx.array,
    parts: list[slice],
) -> mx.array:
    """Differentiable in hidden and in whatever of the embedding is trained.

    Each part's logits are computed again in the backward pass.
    """

    total = mx.array(0.0)
    for part in parts:
        wanted, mask = targets[part], loss_mask[part]

        def part_loss(
            hidden: mx.array, wanted: mx.array = wanted, mask: mx.array = mask
        ) -> mx.array:
            return summed_loss(embedding.as_linear(hidden), wanted, mask)

        total = total + nn.utils.checkpoint(embedding, part_loss)(hidden[part])
    return total


def summed_loss(logits: mx.array, targets: mx.array, loss_mask: mx.array) -> mx.array:
    """Summed cross-entropy of `targets` [tokens] under logits [tokens, vocabulary], float32.

    loss_mask [tokens]: 1 where the target counts.
    """
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
    return ((logsumexp(logits) - chosen) * loss_mask).sum()


def _times_weight(embedding: nn.Module, x: mx.array) -> mx.array:
    """x [tokens, vocabulary] times the embedding's weight, float or INT4 -> [tokens, features]."""
    if not isinstance(embedding, nn.QuantizedEmbedding):
        return x @ embedding.weight.astype(x.dtype)
    return mx.quantized_matmul(
        x,
        embedding.weight,
        embedding.scales.astype(x.dtype),
        embedding.biases.astype(x.dtype),
        transpose=False,
        group_size=embedding.group_size,
        bits=embedding.bits,
    )


def _loss_and_softmax(
    logits: mx.array, targets: mx.array, loss_mask: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Summed loss; exponentials [tokens, vocabulary]; mask over their sums [tokens, 1]."""
    exponentials, total, top = softmax_parts(logits)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)
    loss = ((mx.log(total) + top - chosen).squeeze(-1) * loss_mask).sum()
    return loss, exponentials, loss_mask[:, None] / total


def _loss_and_gradients(
    weight: mx.array, hidden: mx.array, targets: mx.array, loss_mask: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Summed loss of the head and its gradients for weight [vocabulary, features] and hidden.

    The weight's gradient is float32: in bfloat16 a frequent target's many additions round away.
    Computed together, so that no logits (at 128,256 entries a step's largest tensor by far) are
    kept or computed again, each exponential is taken once, and no one-hot matrix is built.
    """
    logits = (hidden @ weight.T).astype(mx.float32)
    loss, exponentials, scale = _loss_and_softmax(logits, targets, loss_mask)
    mask = loss_mask[:, None]
    # d loss / d logits = (softmax - one-hot) x mask, the softmax as exponentials / total.
    weighted = (hidden * scale).astype(hidden.dtype)
    exponentials = exponentials.astype(hidden.dtype)
    d_weight = (exponentials.T @ weighted).astype(mx.float32).at[targets].add(-hidden * mask)
    d_hidden = (exponentials @ weight) * scale - weight[targets] * mask
    return loss, d_weight, d_hidden.astype(hidden.dtype)
