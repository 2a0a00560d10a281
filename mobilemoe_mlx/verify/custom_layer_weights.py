"""Is every weight of a custom-layer package, bit for bit, the checkpoint's?"""

from __future__ import annotations

import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import GROUP_SIZE, ModelArgs
from mobilemoe_mlx.export.int4_source import to_numpy
from mobilemoe_mlx.model import rope_periods
from mobilemoe_mlx.verify.custom_layer_package import CustomLayerModel, Layer
from mobilemoe_mlx.verify.weights import WeightsReport, byte_differences

# Parameter of the contract -> the field of the configuration that it must equal.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "expert_width": "intermediate_size",
    "shared_width": "intermediate_size_mlp",
    "experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "norm_eps": "rms_norm_eps",
    "qk_norm": "use_qk_norm",
    "qk_norm_eps": "rms_norm_eps",
    "normalize": "norm_topk_prob",
    "weight_scale": "routed_scaling_factor",
}


def _parameter_differences(layer: Layer, args: ModelArgs) -> list[str]:
    """Parameters that are not the configuration's; the contract's own are read with the package."""
    expected = {name: getattr(args, field) for name, field in _FIELDS.items()}
    expected |= {
        "group_size": GROUP_SIZE,
        "score_scale": args.head_dim**-0.5,
        "normalize_eps": 1e-20,  # docs/model.md, "MoE"
    }
    return [
        f"{layer.name}: {name} is {value}, the checkpoint's {expected[name]}"
        for name, value in layer.parameters.items()
        if name in expected and value != expected[name]
    ]


def check_layer_weights(package: CustomLayerModel, checkpoint: Checkpoint) -> WeightsReport:
    """Compare every entry and parameter of every layer with `checkpoint`, which is INT4.

    Codes and scales are compared as bytes, floats as bytes after exact widening, the periods of
    the rotation with the checkpoint's configuration.
    """
    problems: list[str] = []
    compared: set[str] = set()
    nbytes = 0
    for layer in package.layers:
        problems += _parameter_differences(layer, checkpoint.args)
        for entry, actual in zip(layer.kind.entries, layer.weights(), strict=True):
            if entry.tensor:
                name = entry.tensor_name(layer.parameters)
                if name not in checkpoint.tensors:
                    problems.append(f"{layer.name}: {entry.name}: the checkpoint has no {name}")
                    continue
                expected = to_numpy(checkpoint.tensors[name])
                compared.add(name)
            else:
                expected = rope_periods(checkpoint.args).astype(np.float32)
            nbytes += expected.nbytes
            differences = byte_differences(actual, expected)
            problems += [f"{layer.name}: {entry.name}: {why}" for why in differences]
    missing = sorted(set(checkpoint.tensors) - compared)
    problems += [f"no layer has {name}" for name in missing]
    return WeightsReport(len(compared), nbytes, tuple(problems))
