"""AdamW with weight decay on matrices only, and the learning-rate schedule."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.optimizers as optim

from mobilemoe_mlx.linux_cpu.adamw import AdamW
from mobilemoe_mlx.train.recipe import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optim.MultiOptimizer:
    """AdamW in two parts: matrices decay, vectors (the norms) do not."""

    def adamw(weight_decay: float) -> AdamW:
        return AdamW(
            learning_rate=config.peak_lr,
            betas=[config.beta1, config.beta2],
            eps=config.eps,
            weight_decay=weight_decay,
            bias_correction=True,
        )

    return optim.MultiOptimizer([adamw(config.weight_decay), adamw(0.0)], [is_matrix])


def is_matrix(_: str, weight: mx.array) -> bool:
    """True for tensors of two or more axes."""
    return weight.ndim >= 2


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of `step` (0-based) of `steps`: a linear warm-up to peak_lr, then the decay.

    The last step has final_lr_fraction x peak_lr.
    """
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    progress = min(1.0, progress)
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    final = config.final_lr_fraction
    return config.peak_lr * (final + (1 - final) * left)
