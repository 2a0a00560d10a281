"""Is every weight of a custom-layer package, bit for bit, the checkpoint's?"""

from __future__ import annotations

import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.coreml.custom.model_parameters import model_parameters
from mobilemoe_mlx.export.int4_source import to_numpy
from mobilemoe_mlx.model import rope_periods
from mobilemoe_mlx.verify.coreml.custom_layer_model import CustomLayerModel, Layer
from mobilemoe_mlx.verify.weights_check import WeightsCheck, byte_differences


def _parameter_differences(layer: Layer, args: ModelArgs) -> list[str]:
    """Parameters that are not the configuration's; the contract's own are read with the package."""
    expected = model_parameters(args)
    return [
        f"{layer.name}: {name} is {value}, the checkpoint's {expected[name]}"
        for name, value in layer.parameters.items()
        if name in expected and value != expected[name]
    ]


def check_layer_weights(package: CustomLayerModel, checkpoint: Checkpoint) -> WeightsCheck:
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
    return WeightsCheck(len(compared), nbytes, tuple(problems))
