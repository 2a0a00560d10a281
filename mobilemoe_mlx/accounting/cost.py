"""What an architecture costs: parameters, bytes of weights and cache, FLOPs per token."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from mobilemoe_mlx.accounting.architecture import Architecture, Layer, mobilemoe
from mobilemoe_mlx.config import GROUP_SIZE, ModelArgs
from mobilemoe_mlx.errors import UserError

# Bytes of one number in the key/value cache, by the type that the model computes in.
KV_CACHE_TYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Accounting:
    """What a model costs. Bytes are of tensors alone, without the header of a safetensors file."""

    context: int  # tokens of context that the figures "at context" are for
    total_parameters: int
    active_parameters: int  # per token: all but the experts that are not selected
    bf16_bytes: int  # published BF16 layout
    int4_bytes: int  # MobileMoE's packed INT4 layout, scales included
    int4_bytes_paper: int | None  # as the paper counts a MobileMoE; see `_int4_bytes_paper`
    kv_bytes_per_token: dict[str, int]  # all layers together, by type; while no window is full
    kv_bytes: dict[str, int]  # at `context`, with windows and recurrent states, by type
    matmul_parameters: int  # active per token, in matrix products
    flops_per_token: int  # one token that attends to `context` tokens; see `attention_flops`


def account(args: ModelArgs, context: int | None = None) -> Accounting:
    """`cost` of a MobileMoE, with the paper's own count of its INT4 bytes."""
    return cost(mobilemoe(args), context, as_the_paper=True)


def cost(
    model: Architecture, context: int | None = None, *, as_the_paper: bool = False
) -> Accounting:
    """Count everything, with `context` tokens in the cache (None: as many as the model takes).

    FLOPs per token = 2 x active parameters in matrix products + attention (a multiply-add is two).
    The output head is a matrix product, also where it is the embedding; looking up an embedding row
    is not. Norms, softmax, activations and the sampling are left out. `as_the_paper`: also INT4
    bytes by its convention. Raises UserError for a context of less than one token or more than
    `max_position_embeddings`.
    """
    context = model.max_position_embeddings if context is None else context
    if not 1 <= context <= model.max_position_embeddings:
        raise UserError(
            f"A context of {context} tokens: this model takes 1 to {model.max_position_embeddings}."
        )
    layers = _runs(model)
    heads = model.embedding * (1 if model.tied else 2)
    packed = heads + sum(n * (each.packed + each.experts * each.expert) for each, n in layers)
    routers = sum(n * each.router for each, n in layers)
    vectors = sum(n * each.vectors for each, n in layers) + model.final_norm
    total = packed + routers + vectors
    idle = sum(n * (each.experts - each.experts_per_token) * each.expert for each, n in layers)
    looked_up = 0 if model.tied else model.embedding
    matmul = total - vectors - idle - looked_up
    kept = sum(n * 2 * _seen(each, context) * each.key_value_features for each, n in layers)
    per_token = sum(n * 2 * each.key_value_features for each, n in layers)
    state_bytes = 4 * sum(n * each.state for each, n in layers)
    other = attention_flops(model, context) + sum(n * each.state_flops for each, n in layers)
    return Accounting(
        context=context,
        total_parameters=total,
        active_parameters=total - idle,
        bf16_bytes=2 * total,
        int4_bytes=packed_bytes(packed) + 4 * routers + 2 * vectors,
        int4_bytes_paper=(
            _int4_bytes_paper(packed, model.embedding, routers, vectors) if as_the_paper else None
        ),
        kv_bytes_per_token={name: per_token * size for name, size in KV_CACHE_TYPES.items()},
        kv_bytes={name: kept * size + state_bytes for name, size in KV_CACHE_TYPES.items()},
        matmul_parameters=matmul,
        flops_per_token=2 * matmul + other,
    )


def bytes_read_per_token(args: ModelArgs) -> int:
    """Bytes of weights that decoding one token reads: all but the experts that are not selected.

    In INT4 with its scales, routers in float32; else all in bfloat16. Norms and the embedding's one
    row are left out.
    """
    return weight_bytes_read(mobilemoe(args), quantized=args.quantized)


def weight_bytes_read(model: Architecture, *, quantized: bool) -> int:
    """`bytes_read_per_token` of any architecture."""
    matmul = cost(model, 1).matmul_parameters
    if not quantized:
        return 2 * matmul
    routers = sum(n * each.router for each, n in _runs(model))
    return packed_bytes(matmul - routers) + 4 * routers


def attention_flops(model: Architecture, context: int) -> int:
    """Queries x keys and weights x values: 2 x tokens seen x query features each, every layer."""
    return sum(n * 4 * _seen(each, context) * each.query_features for each, n in _runs(model))


def _runs(model: Architecture) -> list[tuple[Layer, int]]:
    """Layers that follow each other and are alike, with their number."""
    return [(layer, len(list(run))) for layer, run in itertools.groupby(model.layers)]


def _seen(layer: Layer, context: int) -> int:
    return context if layer.window is None else min(context, layer.window)


def packed_bytes(parameters: int) -> int:
    """Bytes of INT4: two codes per byte and a float16 scale per group."""
    return parameters // 2 + parameters // GROUP_SIZE * 2


def _int4_bytes_paper(packed: int, embedding: int, routers: int, vectors: int) -> int:
    """INT4 size by the convention that gives the paper's 0.68, 1.48 and 2.75 GB (10^9 bytes).

    Four bits a weight without scales, float32 routers, and the embedding counted twice (or, which
    is the same, at eight bits). The paper does not state its convention: this one was found by
    trying, and it does not give the 0.55 GB that the paper has for MobileLLM-Pro; the files
    themselves, with their scales, have `int4_bytes`.
    """
    return (packed + embedding) // 2 + 4 * routers + 2 * vectors
