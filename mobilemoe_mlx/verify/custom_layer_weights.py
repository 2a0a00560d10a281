"""Is every weight of a custom-layer package, bit for bit, the checkpoint's?"""

from __future__ import annotations

import numpy as np

from mobilemoe_mlx.checkpoint_check import Checkpoint
from mobilemoe_mlx.coreml.source import to_numpy
from mobilemoe_mlx.model import rope_periods
from mobilemoe_mlx.verify.custom_layer_package import CustomLayerModel
from mobilemoe_mlx.verify.weights import WeightsReport, byte_differences


def check_layer_weights(package: CustomLayerModel, checkpoint: Checkpoint) -> WeightsReport:
    """Compare every entry of every layer with the INT4 tensors of `checkpoint`.

    Codes and scales are compared as bytes, floats as bytes after exact widening, the periods of
    the rotation with the checkpoint's configuration.
    """
    problems: list[str] = []
    compared: set[str] = set()
    nbytes = 0
    for layer in package.layers:
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
