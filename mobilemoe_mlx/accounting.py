"""Parameters, bytes and FLOPs of a model, computed from its configuration alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.checkpoint import hub
from mobilemoe_mlx.checkpoint.layouts import layout_of
from mobilemoe_mlx.checkpoint.tensor_file import read_header
from mobilemoe_mlx.config import GROUP_SIZE, PRESETS, ModelArgs, read_config
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.files import visible

# Bytes of one number in the key/value cache, by the type that the model computes in.
KV_CACHE_TYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Accounting:
    """What a model costs. Bytes are of tensors alone, without the header of a safetensors file."""

    context: int  # tokens of context that the figures "at context" are for
    total_parameters: int
    active_parameters: int  # per token: all but the experts that are not selected
    bf16_bytes: int  # published BF16 layout
    int4_bytes: int  # published packed INT4 layout, scales included
    int4_bytes_paper: int  # as the paper counts INT4; see `_int4_bytes_paper`
    kv_bytes_per_token: dict[str, int]  # all layers together, by type of the cache
    matmul_parameters: int  # active per token, in matrix products
    flops_per_token: int  # one token that attends to `context` tokens; see `_attention_flops`


def account(args: ModelArgs, context: int | None = None) -> Accounting:
    """Count everything for `args`, with `context` tokens in the cache (None: as many as it takes).

    FLOPs per token = 2 x active parameters in matrix products + attention (a multiply-add is two).
    The output head (the tied embedding) is a matrix product; looking up an embedding row is not.
    Norms, softmax, activations and the sampling are left out. Raises UserError for a context of
    less than one token or more than `max_position_embeddings`.
    """
    context = args.max_position_embeddings if context is None else context
    if not 1 <= context <= args.max_position_embeddings:
        raise UserError(
            f"A context of {context} tokens: this model takes 1 to {args.max_position_embeddings}."
        )
    layers, hidden = args.num_hidden_layers, args.hidden_size
    embedding = args.vocab_size * hidden
    attention = 2 * hidden * args.query_dim + 2 * hidden * args.key_value_dim  # q, o and k, v
    shared = 3 * hidden * args.intermediate_size_mlp  # gate, up, down
    expert = 3 * hidden * args.intermediate_size
    router = args.num_local_experts * hidden

    packed = embedding + layers * (attention + shared + args.num_local_experts * expert)
    routers = layers * router
    vectors = layers * (2 * hidden + args.num_local_experts) + hidden  # norms, selection biases
    total = packed + routers + vectors
    idle = layers * (args.num_local_experts - args.num_experts_per_tok) * expert
    matmul = total - vectors - idle
    kv_numbers = 2 * layers * args.key_value_dim
    return Accounting(
        context=context,
        total_parameters=total,
        active_parameters=total - idle,
        bf16_bytes=2 * total,
        # Two codes per byte and a float16 scale per group; routers float32, vectors bfloat16.
        int4_bytes=packed // 2 + packed // GROUP_SIZE * 2 + 4 * routers + 2 * vectors,
        int4_bytes_paper=_int4_bytes_paper(packed, embedding, routers, vectors),
        kv_bytes_per_token={name: kv_numbers * size for name, size in KV_CACHE_TYPES.items()},
        matmul_parameters=matmul,
        flops_per_token=2 * matmul + _attention_flops(args, context),
    )


def bytes_read_per_token(args: ModelArgs) -> int:
    """Bytes of weights that decoding one token reads: all but the experts that are not selected.

    In INT4 with its scales, routers in float32; else all in bfloat16. Norms and the embedding's one
    row are left out.
    """
    matmul = account(args).matmul_parameters
    if not args.quantized:
        return 2 * matmul
    routers = args.num_hidden_layers * args.num_local_experts * args.hidden_size
    packed = matmul - routers
    return packed // 2 + packed // GROUP_SIZE * 2 + 4 * routers


def _attention_flops(args: ModelArgs, context: int) -> int:
    """Queries x keys and weights x values: 2 x context x (all query features) each, every layer."""
    return 4 * context * args.query_dim * args.num_hidden_layers


def _int4_bytes_paper(packed: int, embedding: int, routers: int, vectors: int) -> int:
    """INT4 size by the convention that gives the paper's 0.68, 1.48 and 2.75 GB (10^9 bytes).

    Four bits a weight without scales, float32 routers, and the embedding counted twice (or, which
    is the same, at eight bits). The paper does not state its convention: this one was found by
    trying; the files themselves, with their scales, have `int4_bytes`.
    """
    return (packed + embedding) // 2 + 4 * routers + 2 * vectors


@dataclass(frozen=True)
class Files:
    """The weights that a checkpoint folder holds."""

    layout: str  # "BF16", "packed INT4" or "INT4 in MLX's form"
    count: int
    bytes: int  # of whole files, headers included


@dataclass(frozen=True)
class Described:
    """A preset or checkpoint, and what it costs."""

    name: str
    args: ModelArgs
    accounting: Accounting
    files: Files | None  # None: not a folder, or one without weights

    def to_dict(self) -> dict[str, Any]:
        """Name, sizes, costs and files as plain JSON."""
        config = self.args.to_dict()
        return {
            "name": self.name,
            "config": config,
            **dataclasses.asdict(self.accounting),
            "files": dataclasses.asdict(self.files) if self.files else None,
        }


def describe(name: str, context: int | None = None) -> Described:
    """Account for a preset, a checkpoint folder, or a Hugging Face repo (its config.json alone).

    A preset's name comes first; `./S` is the folder. Raises UserError for a name that is none of
    these, a config.json that cannot be had, or a context as in `account`.
    """
    folder = files.user_path(name)
    weights = None
    if name in PRESETS:
        args = PRESETS[name]
    elif folder.is_dir():
        args = ModelArgs.from_dict(read_config(folder))
        weights = _files(folder)
    elif name.count("/") == 1 and not folder.parent.is_dir():
        args = ModelArgs.from_dict(read_config(hub.resolve(name, config_only=True)))
    else:
        raise UserError(
            f"There is no preset and no folder {name}{did_you_mean(name, PRESETS)}. "
            f"Presets: {', '.join(PRESETS)}."
        )
    return Described(name, args, account(args, context), weights)


def describe_presets(context: int | None = None) -> list[Described]:
    """All presets, each at `context` or, where it takes less, at the most it takes."""
    return [
        describe(name, None if context is None else min(context, args.max_position_embeddings))
        for name, args in PRESETS.items()
    ]


def _files(folder: Path) -> Files | None:
    paths = sorted(visible(folder.glob("*.safetensors")))
    names = {name for path in paths for name in read_header(path).tensors}
    if not names:
        return None
    return Files(layout_of(names).value, len(paths), sum(path.stat().st_size for path in paths))


def table(described: Sequence[Described]) -> str:
    """A column for each model, for people; one at least."""
    cells = [_cells(each) for each in described]
    return text_table.columns([[label, *(c[label] for c in cells)] for label in cells[0]])


def _cells(d: Described) -> dict[str, str]:
    """Label -> text, one column of the table; the labels are the same for every model."""
    args, a = d.args, d.accounting
    cells = {
        "": d.name,
        "layers": f"{args.num_hidden_layers}",
        "hidden size": f"{args.hidden_size}",
        "attention heads / key-value heads": (
            f"{args.num_attention_heads} / {args.num_key_value_heads}"
        ),
        "routed experts / per token": f"{args.num_local_experts} / {args.num_experts_per_tok}",
        "vocabulary": f"{args.vocab_size:,}",
        "active parameters per token": text_table.count(a.active_parameters),
        "total parameters": text_table.count(a.total_parameters),
        "BF16 weights": text_table.size(a.bf16_bytes),
        "INT4 weights (published files)": text_table.size(a.int4_bytes),
        "INT4 weights (as the paper counts)": text_table.size(a.int4_bytes_paper),
        "KV cache per token, 16-bit": text_table.size(a.kv_bytes_per_token["bfloat16"]),
        "KV cache per token, float32": text_table.size(a.kv_bytes_per_token["float32"]),
        "context": f"{a.context:,}",
        "KV cache at this context, 16-bit": text_table.size(
            a.kv_bytes_per_token["bfloat16"] * a.context
        ),
        "FLOPs per token at this context": text_table.count(a.flops_per_token),
    }
    if d.files:
        plural = "" if d.files.count == 1 else "s"
        cells["weights here"] = (
            f"{d.files.layout}, {d.files.count} file{plural}, {text_table.size(d.files.bytes)}"
        )
    return cells
