"""A published INT4 folder as a model of the kernel."""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping
from pathlib import Path

import kernel_library as k
import numpy as np
import torch
from safetensors import safe_open

from mobilemoe_mlx.config import ModelArgs, read_config

Arrays = Mapping[str, np.ndarray]


def read_folder(folder: Path) -> tuple[ModelArgs, dict[str, np.ndarray]]:
    """Configuration and tensors; bfloat16 as the uint16 that it lies in."""
    tensors = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            tensor = file.get_tensor(name)
            narrow = tensor.dtype == torch.bfloat16
            tensors[name] = (tensor.view(torch.uint16) if narrow else tensor).numpy()
    return ModelArgs.from_dict(read_config(folder)), tensors


def config_of(args: ModelArgs, library: k.Library) -> tuple[k.Config, np.ndarray]:
    """-> (the configuration, its periods, to be kept alive until a model is created)."""
    periods = np.empty(args.head_dim // 2, np.float32)
    scaling = args.rope_scaling
    stretch = (
        (1.0, 1.0, 1.0, 8192.0)
        if scaling is None
        else (
            scaling.factor,
            scaling.low_freq_factor,
            scaling.high_freq_factor,
            scaling.original_max_position_embeddings,
        )
    )
    library.call(
        "rope_periods",
        args.head_dim,
        *(c.c_double(value) for value in (args.rope_theta, *stretch)),
        k.floats(periods),
    )
    config = k.Config(
        args.vocab_size,
        args.hidden_size,
        args.num_hidden_layers,
        args.num_attention_heads,
        args.num_key_value_heads,
        args.head_dim,
        args.intermediate_size,
        args.intermediate_size_mlp,
        args.num_local_experts,
        args.num_experts_per_tok,
        int(args.norm_topk_prob),
        int(args.use_qk_norm),
        args.rms_norm_eps,
        args.routed_scaling_factor,
        k.floats(periods),
    )
    return config, periods


def weights_of(args: ModelArgs, tensors: Arrays) -> tuple[k.Weights, object]:
    """-> (the weights, the array of layers, to be kept alive until a model is created)."""

    def linear(name: str) -> k.Int4:
        return k.Int4(
            k.tensor(tensors[f"{name}.qweight"]), k.tensor(tensors[f"{name}.weight_scale"])
        )

    def experts(name: str) -> k.Int4:
        return k.Int4(k.tensor(tensors[f"{name}_qweight"]), k.tensor(tensors[f"{name}_scale"]))

    layers = (k.LayerWeights * args.num_hidden_layers)()
    for index, layer in enumerate(layers):
        at = f"model.layers.{index}"
        layer.input_layernorm = k.tensor(tensors[f"{at}.input_layernorm.weight"])
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer, name, linear(f"{at}.self_attn.{name}"))
        layer.post_attention_layernorm = k.tensor(tensors[f"{at}.post_attention_layernorm.weight"])
        at += ".feed_forward"
        layer.feed_forward = k.MoeWeights(
            k.tensor(tensors[f"{at}.router.weight"]),
            k.tensor(tensors[f"{at}.expert_bias"]),
            experts(f"{at}.experts.gate_up"),
            experts(f"{at}.experts.down"),
            linear(f"{at}.shared_expert.gate_proj"),
            linear(f"{at}.shared_expert.up_proj"),
            linear(f"{at}.shared_expert.down_proj"),
        )
    weights = k.Weights(
        linear("model.embed_tokens"), k.tensor(tensors["model.norm.weight"]), layers
    )
    return weights, layers


def open_model(runtime: k.Runtime, args: ModelArgs, tensors: Arrays) -> k.Model:
    """The model; `tensors` stay alive with it."""
    config, periods = config_of(args, runtime.library)
    weights, layers = weights_of(args, tensors)
    return k.Model(runtime, config, weights, (tensors, periods, layers))
