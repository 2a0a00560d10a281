"""Load checkpoints into models and save models as checkpoints, without losing a bit.

What is wrong with a folder is found by `check`; names and types are in `layouts`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mobilemoe_mlx.checkpoint import layouts
from mobilemoe_mlx.checkpoint.check import Checkpoint, check, check_scales, open_checkpoint
from mobilemoe_mlx.checkpoint.folder import MAX_SHARD_BYTES, published_config, write_model_folder
from mobilemoe_mlx.checkpoint.hub import resolve
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.tensor_file import FORMAT_NAMES, Tensor, from_array
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.int4_rounding import SAVED_TYPE, as_quantized, stored_type
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import int4_model
from mobilemoe_mlx.tensor_names import is_always_float32

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

__all__ = ["check", "load", "load_model", "open_checkpoint", "save", "save_quantized"]


@dataclass(frozen=True)
class Source:
    """Where a loaded model came from (`model.source`): what `save` needs to give all of it back."""

    folder: Path
    config: dict[str, Any]  # config.json as it was, unknown fields included
    dtypes: dict[str, str]  # published tensor name -> stored type
    metadata: dict[str, str]  # of the safetensors files


def load(
    path_or_repo: str | Path, *, dtype: mx.Dtype | None = None, revision: str | None = None
) -> tuple[Model, TokenizerWrapper]:
    """Load a model and its tokenizer from a folder or a Hugging Face repo id.

    `dtype`: see `load_model`. Raises UserError saying all that is wrong with the folder.
    """
    from mobilemoe_mlx.tokenizer import load_tokenizer  # transformers is slow to import

    folder = resolve(path_or_repo, revision)
    checkpoint = open_checkpoint(folder)
    tokenizer = load_tokenizer(folder, checkpoint.end_token_ids())
    return _load(checkpoint, dtype), tokenizer


def load_model(folder: str | Path, dtype: mx.Dtype | None = None) -> Model:
    """Load the model of a checkpoint folder: either published layout, or `mobilemoe convert`'s.

    `dtype` is the type of activations. BF16 checkpoints: float32 (their weights widened, exact) or
    bfloat16 (tensors stored in float32 are rounded, except router and expert_bias). INT4
    checkpoints: float32 or float16; codes and scales are the stored ones. Default: float32 on the
    CPU, else bfloat16 for BF16 and float16 for INT4. Raises UserError for other types and for a
    folder that `check` or `check_scales` object to.
    """
    return _load(open_checkpoint(folder), dtype)


def _load(checkpoint: Checkpoint, dtype: mx.Dtype | None) -> Model:
    check_scales(checkpoint)
    return load_tensors(checkpoint, dtype)


def load_tensors(checkpoint: Checkpoint, dtype: mx.Dtype | None = None) -> Model:
    """The model of a checkpoint whose tensors may be computed, as those of a fused one are.

    `dtype`: see `load_model`, which checks INT4 scales besides.
    """
    is_int4 = checkpoint.layout is not Layout.FLOAT
    dtype = _compute_type(dtype, is_int4)
    model = int4_model(checkpoint.args, dtype) if is_int4 else Model(checkpoint.args)
    tensors = layouts.to_mlx(checkpoint.tensors)
    if not is_int4:
        tensors = {name: _for_compute(name, t, dtype) for name, t in tensors.items()}
    weights = []
    for name in sorted(tensors, key=lambda n: -tensors[n].nbytes):  # the largest while it is empty
        weights.append((name, tensors[name].read()))
        mx.eval(weights[-1][1])
    model.load_weights(weights, strict=True)
    published = layouts.to_published(tensors if is_int4 else checkpoint.tensors)
    model.source = Source(
        checkpoint.folder,
        checkpoint.config,
        {name: tensor.dtype for name, tensor in published.items()},
        checkpoint.metadata,
    )
    return model


def _compute_type(dtype: mx.Dtype | None, is_int4: bool) -> mx.Dtype:
    if dtype is None:
        if mx.default_device().type == mx.DeviceType.cpu:
            return mx.float32
        return mx.float16 if is_int4 else mx.bfloat16
    allowed = (mx.float32, mx.float16) if is_int4 else (mx.float32, mx.bfloat16)
    if dtype not in allowed:
        why = (
            "bfloat16 cannot hold the float16 scales"
            if is_int4
            else "float16 cannot hold all bfloat16 numbers"
        )
        kind = "INT4" if is_int4 else "BF16"
        names = " or ".join(_plain(d) for d in allowed)
        raise UserError(f"{kind} checkpoints compute in {names}, not in {_plain(dtype)} ({why}).")
    return dtype


def _plain(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]


def _for_compute(name: str, tensor: Tensor, dtype: mx.Dtype) -> Tensor:
    if dtype != mx.float32 and is_always_float32(name):
        return tensor
    return layouts.cast(tensor, FORMAT_NAMES[dtype])


def save(
    model: Model,
    folder: str | Path,
    *,
    tokenizer_folder: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write `model` in its published layout: BF16 for a float model, packed INT4 for an INT4 one.

    Tensors of a loaded model get the type back that they were stored in, others bfloat16 (rounded
    to nearest even); unknown fields of its config.json stay. Tokenizer files come from
    `tokenizer_folder`, else from the folder the model was loaded from, which alone gives a
    generation_config.json. Raises UserError when the folder is not empty (unless `overwrite`) or
    cannot be written; nothing half-written stays.
    """
    source: Source | None = getattr(model, "source", None)
    parameters = {n: from_array(p) for n, p in tree_flatten(model.parameters())}
    is_int4 = layouts.layout_of(parameters) is Layout.MLX_INT4
    args = as_quantized(model.args) if is_int4 else model.args
    if source is None:
        args = dataclasses.replace(args, torch_dtype=SAVED_TYPE)
    tensors = {}
    for name, tensor in layouts.to_published(parameters).items():
        dtype = source.dtypes.get(name) if source is not None else None
        tensors[name] = layouts.cast(tensor, dtype or _published_type(name, tensor, is_int4))
    if tokenizer_folder is None and source is not None:
        tokenizer_folder = source.folder
    write_model_folder(
        folder,
        published_config(args, source.config if source else None),
        tensors,
        metadata=_published_metadata(source.metadata if source else {}),
        companions=tokenizer_folder,
        settings=source.folder if source else None,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
    )


def _published_type(name: str, tensor: Tensor, is_int4: bool) -> str:
    if not is_int4:
        return "BF16"
    dtype = stored_type(name)
    return tensor.dtype if dtype is None else FORMAT_NAMES[dtype]


def _published_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    return {**metadata, "format": "pt"} if metadata.get("format") == "mlx" else dict(metadata)


def save_quantized(
    tensors: Mapping[str, mx.array],
    args: ModelArgs,
    folder: str | Path,
    *,
    tokenizer_folder: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Write the flat INT4 tensors of `int4_rounding.quantize_parameters` as a published checkpoint.

    `args` may be the float model's. Other arguments and errors: see `save`.
    """
    write_model_folder(
        folder,
        as_quantized(args).to_dict(),
        {name: from_array(array) for name, array in tensors.items()},
        companions=tokenizer_folder,
        max_shard_bytes=max_shard_bytes,
        overwrite=overwrite,
    )
