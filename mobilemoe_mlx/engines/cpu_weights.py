"""A published INT4 checkpoint as the CPU kernel's structures, which point into its tensors."""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.cpu_kernel import structures as s
from mobilemoe_mlx.cpu_kernel.library import Library, Model, Runtime, floats, tensor
from mobilemoe_mlx.tensor_names import packed_names

Arrays = Mapping[str, np.ndarray]

# What `rope_periods` takes for no scaling: a factor of 1; the rest is then of no account.
_UNSCALED = (1.0, 1.0, 1.0, 8192.0)


def kernel_model(
    runtime: Runtime,
    args: ModelArgs,
    tensors: Arrays,
    expert_source: s.ExpertSource | None = None,
    keep: Any = None,
) -> Model:
    """The model over `tensors`, published names and types (bfloat16 as uint16), kept alive by it.

    `expert_source`: where routed experts come from, which `tensors` then need not hold; `keep`:
    what it needs. Raises KernelError for sizes beyond the kernel's, and for too little memory for
    experts.
    """
    config, periods = kernel_config(args, runtime.library)
    weights, layers = kernel_weights(args, tensors)
    if expert_source is not None:
        weights.expert_source = c.pointer(expert_source)
    return Model(runtime, config, weights, (tensors, periods, layers, keep))


def expert_names(layer: int) -> tuple[str, str, str, str]:
    """The published names of a layer's routed experts: codes, scales of gate_up, then of down."""
    at = f"model.layers.{layer}.feed_forward.experts"
    return (*packed_names(f"{at}.gate_up_proj"), *packed_names(f"{at}.down_proj"))


def kernel_config(args: ModelArgs, library: Library) -> tuple[s.Config, np.ndarray]:
    """-> (the configuration, the periods it points to)."""
    scaling = args.rope_scaling
    stretch = (
        _UNSCALED
        if scaling is None or scaling.rope_type == "default"
        else (
            scaling.factor,
            scaling.low_freq_factor,
            scaling.high_freq_factor,
            scaling.original_max_position_embeddings,
        )
    )
    periods = library.rope_periods(args.head_dim, args.rope_theta, stretch)
    same_names = [name for name, *_ in s.Config._fields_ if name != "rope_periods"]
    config = s.Config(**{name: getattr(args, name) for name in same_names})
    config.rope_periods = floats(periods)
    return config, periods


def kernel_weights(args: ModelArgs, tensors: Arrays) -> tuple[s.Weights, object]:
    """-> (the weights, the array of layers that they point to).

    Routed experts may be absent, and so may what the model's form does not have.
    """

    def int4(parameter: str) -> s.Int4:
        codes, scales = packed_names(parameter)
        return s.Int4(tensor(tensors[codes]), tensor(tensors[scales]))

    def shared(parameter: str) -> s.Int4:
        return int4(parameter) if args.intermediate_size_mlp else s.Int4()

    def experts(codes: str, scales: str) -> s.Int4:
        return s.Int4(tensor(tensors.get(codes)), tensor(tensors.get(scales)))

    layers = (s.LayerWeights * args.num_hidden_layers)()
    for index, layer in enumerate(layers):
        at = f"model.layers.{index}"
        layer.input_layernorm = tensor(tensors[f"{at}.input_layernorm.weight"])
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer, name, int4(f"{at}.self_attn.{name}"))
        layer.post_attention_layernorm = tensor(tensors[f"{at}.post_attention_layernorm.weight"])
        at += ".feed_forward"
        names = expert_names(index)
        layer.feed_forward = s.MoeWeights(
            tensor(tensors[f"{at}.router.weight"] if args.num_local_experts else None),
            tensor(tensors[f"{at}.expert_bias"] if args.num_local_experts else None),
            experts(*names[:2]),
            experts(*names[2:]),
            shared(f"{at}.shared_expert.gate_proj"),
            shared(f"{at}.shared_expert.up_proj"),
            shared(f"{at}.shared_expert.down_proj"),
        )
    weights = s.Weights(int4("model.embed_tokens"), tensor(tensors["model.norm.weight"]), layers)
    return weights, layers
