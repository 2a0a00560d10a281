"""A checkpoint with adapters added to its matrices, tensor by tensor, in BF16, float32 or INT4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import mlx.core as mx

from mobilemoe_mlx import int4
from mobilemoe_mlx.adapters.adapter_file import Adapter, moved_bias
from mobilemoe_mlx.adapters.config import EMBEDDING
from mobilemoe_mlx.checkpoint import layouts
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.layouts import Layout, module_name, published_name
from mobilemoe_mlx.checkpoint.rewrite import published_int4
from mobilemoe_mlx.checkpoint.tensor_file import Tensor
from mobilemoe_mlx.config import ScaleRule
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.int4_rounding import as_float, stored_type
from mobilemoe_mlx.tensor_names import packed_names

Target = Literal["bf16", "int4"]

# An adapter with its weight, as `adapter_file.read_adapters` gives them.
Weighted = tuple[Adapter, float]


def fused_checkpoint(
    checkpoint: Checkpoint, adapters: Sequence[Weighted], to: Target, rule: ScaleRule | None = None
) -> Checkpoint:
    """`checkpoint` with `adapters` added, in the published layout of `to`.

    Nothing is computed until a tensor is read, and then that one alone. What has no adapter keeps
    its bits where it keeps its form. `rule`: of the scales that are computed for INT4; None: that
    of an adapter trained through INT4, else "unclipped".
    """
    rule = rule or rule_of(adapters)
    base = float_tensors(checkpoint)
    fused = {
        name: added(name, tensor, adapters)
        for name, tensor in base.items()
        if has_update(name, adapters)
    }
    if to == "int4":
        rest = published_int4(checkpoint, rule)
        tensors = dict(rest.tensors)
        for name, tensor in fused.items():
            for target, new in layouts.rounded({published_name(name): tensor}, rule).items():
                tensors[target] = new
        return dataclasses.replace(rest, tensors=tensors)
    stored = _stored(checkpoint)
    tensors = {}
    for name, tensor in base.items():
        old = stored.get(name)
        new = fused.get(name) or old or tensor
        tensors[published_name(name)] = layouts.cast(new, "BF16" if old is None else old.dtype)
    args = as_float(checkpoint.args)
    return dataclasses.replace(checkpoint, args=args, layout=Layout.FLOAT, tensors=tensors)


def float_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Parameter of the float `Model` -> its values, float32, exact (INT4 dequantised)."""
    stored = _stored(checkpoint)
    out = {name: layouts.cast(tensor, "F32") for name, tensor in stored.items()}
    if checkpoint.layout is not Layout.FLOAT:
        tensors = published_int4(checkpoint).tensors
        for name, shape in layouts.parameter_shapes(checkpoint.args).items():
            if name not in stored:
                codes, scale = (tensors[packed] for packed in packed_names(name))
                out[name] = Tensor("F32", shape, _dequantised(codes, scale))
    return out


def _stored(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors that are stored as floats, under the names of the float `Model`."""
    named = {module_name(published_name(n)): tensor for n, tensor in checkpoint.tensors.items()}
    if checkpoint.layout is Layout.FLOAT:
        return named
    return {name: tensor for name, tensor in named.items() if stored_type(name) is not None}


def _dequantised(codes: Tensor, scale: Tensor) -> Callable[[], mx.array]:
    return lambda: int4.dequantize(int4.unpack(codes.read()), scale.read())


def has_update(name: str, adapters: Sequence[Weighted]) -> bool:
    """Whether any adapter changes the parameter `name`."""
    path = name.removesuffix(".weight")
    return any(path in adapter.tensors or name in adapter.biases for adapter, _ in adapters)


def added(name: str, tensor: Tensor, adapters: Sequence[Weighted]) -> Tensor:
    """The float32 parameter `name` with its updates."""

    def read() -> mx.array:
        base = tensor.read()
        if name.endswith("expert_bias"):
            return moved_bias(name, base, adapters)
        return with_update(name.removesuffix(".weight"), base, adapters)

    return Tensor("F32", tensor.shape, read)


def with_update(path: str, weight: mx.array, adapters: Sequence[Weighted]) -> mx.array:
    """The float32 matrix of the module at `path` with its updates, float32."""
    for adapter, factor in adapters:
        if path not in adapter.tensors:
            continue
        parts = adapter.read(path, factor)
        product = adapter.scale * factor * (parts["lora_a"] @ parts["lora_b"])
        is_transposed = weight.ndim == 2 and path != EMBEDDING  # [out, in]
        weight = weight + (product.T if is_transposed else product)
        if "m" in parts:
            # Lengths along "in" of [out, in] and [experts, in, out], and of the embedding's rows.
            lengths = mx.linalg.norm(weight, axis=1, keepdims=True)
            factors = mx.expand_dims(parts["m"], 1) / mx.where(lengths > 0, lengths, 1.0)
            weight = weight * mx.where(lengths > 0, factors, 1.0)
    return weight


def rule_of(adapters: Sequence[Weighted]) -> ScaleRule:
    """The scale rule that adapters were trained through; "unclipped" where none was.

    Raises UserError for several that were trained through different ones.
    """
    rules = {
        adapter.config.scale_rule: adapter.folder
        for adapter, _ in adapters
        if adapter.config is not None and adapter.config.through_int4
    }
    if len(rules) > 1:
        said = ", ".join(f"{folder} with {rule} scales" for rule, folder in rules.items())
        raise UserError(f"These adapters were trained through different kinds of INT4: {said}.")
    return next(iter(rules), "unclipped")
