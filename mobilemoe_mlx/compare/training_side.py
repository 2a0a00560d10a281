"""MLX's side of the comparisons of training: the project's trainer, on plain tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.quantized import float_model
from mobilemoe_mlx.tensor_names import is_expert_matrix
from mobilemoe_mlx.train.recipe import (
    ComputeConfig,
    DataConfig,
    OptimizerConfig,
    RoutingConfig,
    StageConfig,
)
from mobilemoe_mlx.train.step import Trainer

TrainingType = Literal["float32", "bfloat16"]


def settings(
    dtype: TrainingType,
    *,
    quantize: bool,
    capacity_factor: float | None,
    rows: int,
    context: int,
    steps: int,
    peak_lr: float,
) -> StageConfig:
    """A stage of training with everything else as a recipe has it by default."""
    return StageConfig(
        data=DataConfig(mixture="", context=context),
        optimizer=OptimizerConfig(peak_lr=peak_lr),
        routing=RoutingConfig(capacity_factor=capacity_factor),
        compute=ComputeConfig(dtype=dtype),
        batch_size=rows,
        tokens=steps * rows * context,
        quantize=quantize,
    )


def batch_of(tokens: np.ndarray) -> Batch:
    """Tokens [rows, tokens + 1] as one document a row, in which every target counts."""
    inputs, targets = (part.astype(np.int32) for part in (tokens[:, :-1], tokens[:, 1:]))
    ones, zeros = np.ones(inputs.shape, np.float32), np.zeros(inputs.shape, np.int32)
    return Batch(inputs, targets, loss_mask=ones, documents=zeros)


def gradients(
    folder: Path,
    tokens: np.ndarray,
    dtype: TrainingType,
    quantize: bool,
    capacity_factor: float | None,
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean cross-entropy, and the gradient of every trained parameter by its published name."""
    rows, length = tokens.shape
    targets = rows * (length - 1)
    stage = settings(
        dtype,
        quantize=quantize,
        capacity_factor=capacity_factor,
        rows=rows,
        context=length - 1,
        steps=1,
        peak_lr=1.0,
    )
    trainer = Trainer(float_model(load_model(folder, mx.float32)), stage)
    sums, tree = trainer.gradients(batch_of(tokens), targets=targets, real=targets)
    return sums.cross_entropy.item() / targets, by_published_name(tree)


def by_published_name(tree: Any) -> dict[str, np.ndarray]:
    """A parameter tree as float32 arrays, without the selection biases."""
    out = {}
    for name, value in tree_flatten(tree):
        module = name.removesuffix(".weight")
        if not name.endswith("expert_bias"):
            out[module if is_expert_matrix(module) else name] = np.array(value.astype(mx.float32))
    return out
