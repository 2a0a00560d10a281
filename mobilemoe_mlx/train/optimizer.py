"""AdamW with weight decay on matrices only, its rates, and the rounding of what it gives."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.optimizers as optim

from mobilemoe_mlx.linux_cpu.adamw import AdamW
from mobilemoe_mlx.train.recipe import OptimizerConfig


def make_optimizer(config: OptimizerConfig, lora_b_rate: float = 1.0) -> optim.MultiOptimizer:
    """AdamW in two parts: matrices decay, vectors (the norms) do not.

    With a `lora_b_rate` other than 1 adapters' `lora_b` are a third part, in front of them.
    """

    def adamw(weight_decay: float) -> AdamW:
        return AdamW(
            learning_rate=config.peak_lr,
            betas=[config.beta1, config.beta2],
            eps=config.eps,
            weight_decay=weight_decay,
            bias_correction=True,
        )

    matrices, vectors = adamw(config.weight_decay), adamw(0.0)
    if lora_b_rate == 1:
        return optim.MultiOptimizer([matrices, vectors], [is_matrix])
    parts = [adamw(config.weight_decay), matrices, vectors]
    return optim.MultiOptimizer(parts, [_is_lora_b, is_matrix])


def set_learning_rate(optimizer: optim.MultiOptimizer, rate: float, lora_b_rate: float) -> None:
    """Give every part of `make_optimizer` its rate, `lora_b` that of the rest x `lora_b_rate`."""
    optimizer.learning_rate = rate
    if lora_b_rate != 1:
        optimizer.optimizers[0].learning_rate = rate * lora_b_rate


def _is_lora_b(name: str, _: mx.array) -> bool:
    return name.endswith("lora_b")


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


def rounded_at_random(x: mx.array, dtype: mx.Dtype) -> mx.array:
    """float32 `x` as `dtype`; bfloat16 by the chance that lets the mean of many roundings be x.

    A step moves a weight by less than half of bfloat16's spacing, which rounding to nearest would
    undo every time. The numbers are MLX's random state's.
    """
    if dtype == mx.float32:
        return x
    noise = mx.random.randint(0, 1 << 16, x.shape, dtype=mx.uint32)
    bits = (x.view(mx.uint32) + noise) & mx.array(0xFFFF0000, mx.uint32)
    return bits.view(mx.float32).astype(dtype)
