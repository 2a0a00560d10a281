"""Attach adapters to a model: its layers are frozen, and the chosen ones wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.experts import ExpertLinear, QuantizedExpertLinear
from mobilemoe_mlx.lora.embedding import LoRAEmbedding
from mobilemoe_mlx.lora.experts import LoRAExpertLinear
from mobilemoe_mlx.lora.linear import LoRALinear
from mobilemoe_mlx.lora.low_rank import LowRank
from mobilemoe_mlx.lora.router import LoRARouter
from mobilemoe_mlx.model import Model, Router
from mobilemoe_mlx.quantized import round_modules


def attach(model: Model, config: AdapterConfig, seed: int = 0) -> None:
    """Freeze `model`, whose weights are loaded, and put adapters on the modules of `config`.

    `model.trainable_parameters()` are then exactly the adapters', float32, and the model computes
    what it did. Through INT4 all else of a float model is rounded too, by the same rule: the model
    computes what its fused checkpoint will, float32. `seed`: of the adapters' initial values.
    Raises UserError for layers that the model lacks.
    """
    paths = config.module_paths(len(model.layers))
    keys = mx.random.split(mx.random.key(seed), len(paths))
    options: dict[str, Any] = {
        "r": config.rank,
        "scale": config.scale,
        "dropout": config.dropout,
        "dora": config.kind == "dora",
    }
    rule = config.scale_rule if config.through_int4 else None
    if rule is not None and not model.args.quantized:
        round_modules(model, set(paths), rule)
    wrap(
        model, {path: {**options, "key": key} for path, key in zip(paths, keys, strict=True)}, rule
    )


def wrap(model: Model, options: Mapping[str, dict[str, Any]], rule: Any = None) -> None:
    """Freeze `model` and wrap the modules at the paths of `options`, each with its own.

    `rule`: the scale rule of adapters through INT4; None: those that are added.
    """
    model.freeze()
    modules = dict(model.named_modules())
    wrapped = []
    for path, own in options.items():
        module = modules[path]
        own = own if isinstance(module, Router) else {**own, "scale_rule": rule}
        wrapped.append((path, _layer_for(module)(module, **own)))
    model.update_modules(tree_unflatten(wrapped))
    mx.eval(model.trainable_parameters())


def _layer_for(module: nn.Module) -> type[LowRank]:
    if isinstance(module, ExpertLinear | QuantizedExpertLinear):
        return LoRAExpertLinear
    if isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
        return LoRAEmbedding
    return LoRARouter if isinstance(module, Router) else LoRALinear


def adapter_layers(model: nn.Module) -> dict[str, LowRank]:
    """The adapters of a model by the paths of their modules."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LowRank)}


def set_dropout_key(model: nn.Module, key: mx.array) -> None:
    """Draw all dropout masks with `key` from now on, each layer's own, the same in every call.

    To be set anew for each micro-batch, so that a layer which is computed again for its gradient
    (activation checkpointing), and a run that is resumed, drop the same.
    """
    layers = adapter_layers(model).values()
    for layer, own in zip(layers, mx.random.split(key, max(1, len(layers))), strict=False):
        layer._dropout_key = own
