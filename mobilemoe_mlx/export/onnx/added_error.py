"""What the second rounding of `qmoe` adds: in every layer's experts, and at the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.load_save import load_tensors
from mobilemoe_mlx.engines.mlx import MLXEngine
from mobilemoe_mlx.engines.onnx import ONNXEngine
from mobilemoe_mlx.onnx_folder.folder import ONNXFolder

_TOKENS = 32


@dataclass(frozen=True)
class AddedError:
    """Errors relative to the checkpoint's own INT4: root mean squares, of weights and of logits."""

    layers: tuple[tuple[float, float], ...]  # of each layer: gate and up together, down
    tokens: int  # random, of the sequence that the logits are compared on
    logits_median: float
    logits_max: float

    def text(self) -> str:
        """For people: a line for each layer, and one for the logits."""
        lines = [
            f"  layer {layer}: gate and up {gate_up:.1%}, down {down:.1%}"
            for layer, (gate_up, down) in enumerate(self.layers)
        ]
        return "\n".join(
            [
                "The second rounding adds, relative to the checkpoint's own INT4:",
                *lines,
                f"  logits: median {self.logits_median:.1%}, largest {self.logits_max:.1%} over "
                f"{self.tokens} random tokens",
            ]
        )


def added_error(
    export: ONNXFolder, source: Checkpoint, rounding: Mapping[str, float]
) -> AddedError:
    """Of an export and the INT4 checkpoint that it was made from.

    `rounding`: the error of each matrix of experts, by its name in the checkpoint.
    """
    args = source.args
    count = min(_TOKENS, export.context)
    tokens = np.random.default_rng(0).integers(args.vocab_size, size=count).tolist()
    found = ONNXEngine(export).session().feed(tokens, all_logits=True)
    reference = MLXEngine(load_tensors(source, mx.float32)).session()
    wanted = reference.feed(tokens, all_logits=True)
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return AddedError(
        layers=tuple(
            (rounding[f"{at}.gate_up"], rounding[f"{at}.down"])
            for at in (
                f"model.layers.{layer}.feed_forward.experts"
                for layer in range(args.num_hidden_layers)
            )
        ),
        tokens=count,
        logits_median=float(np.median(errors)),
        logits_max=float(errors.max()),
    )
