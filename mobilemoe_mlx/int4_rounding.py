"""What INT4 makes of each parameter of a float model: the type it is stored in, or its rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mobilemoe_mlx import int4
from mobilemoe_mlx.config import ModelArgs, ScaleRule
from mobilemoe_mlx.tensor_names import packed_names

SAVED_TYPE = "bfloat16"  # config.json's `torch_dtype` of what is written here, BF16 or INT4

# Tensors that INT4 leaves alone, with the type that the published QAT files store them in.
_STORED_TYPES = {
    "router.weight": mx.float32,
    "expert_bias": mx.bfloat16,
    "norm.weight": mx.bfloat16,  # input_layernorm, post_attention_layernorm and the final norm
}


def stored_type(name: str) -> mx.Dtype | None:
    """The stored type of a parameter that INT4 leaves alone; None for one that is packed."""
    return next((t for end, t in _STORED_TYPES.items() if name.endswith(end)), None)


def quantize_parameters(
    parameters: dict[str, Any], rule: ScaleRule = "unclipped"
) -> dict[str, mx.array]:
    """A float model's parameter tree, rounded to nearest INT4, as flat published INT4 tensors.

    `rule`: of the scales; see `int4.quantize`. Norms, router and selection biases are cast to their
    stored types. Raises UserError for values beyond the reach of float16 scales.
    """
    out: dict[str, mx.array] = {}
    for name, weight in tree_flatten(parameters):
        if (dtype := stored_type(name)) is not None:
            out[name] = weight.astype(dtype)
            continue
        for target, part in zip(packed_names(name), rounding(name, rule), strict=True):
            out[target] = part(weight)
    return out


def rounding(
    name: str, rule: ScaleRule = "unclipped"
) -> tuple[Callable[[mx.array], mx.array], Callable[[mx.array], mx.array]]:
    """How a parameter that INT4 packs is rounded: its packed codes and its scales, from its rows.

    The second raises UserError, naming the parameter, for values beyond float16 scales.
    """

    def scales(weight: mx.array) -> mx.array:
        scale = int4.quantize(weight, rule)[1]
        int4.check_scales(name, scale)
        return scale

    return lambda weight: int4.pack(int4.quantize(weight, rule)[0]), scales


def as_float(args: ModelArgs) -> ModelArgs:
    """The same configuration without the `quantization` block: that of a BF16 checkpoint."""
    return dataclasses.replace(args, quantized=False, torch_dtype=SAVED_TYPE)


def as_quantized(args: ModelArgs) -> ModelArgs:
    """The same configuration with the published `quantization` block."""
    if args.quantized:
        return args
    return dataclasses.replace(args, quantized=True, torch_dtype=SAVED_TYPE)
