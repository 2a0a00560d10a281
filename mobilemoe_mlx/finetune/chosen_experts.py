"""Whole routed experts that are trained while the others of their layer are frozen (ESFT)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mobilemoe_mlx.experts import ExpertLinear
from mobilemoe_mlx.finetune.expert_load import ExpertLoad
from mobilemoe_mlx.finetune.recipe import ExpertChoice
from mobilemoe_mlx.gather_mm import gather_mm
from mobilemoe_mlx.model import Model


def choose_experts(load: ExpertLoad, choice: ExpertChoice) -> list[list[int]]:
    """For each layer the experts that the data uses most: as few as have `choice.share` of its use.

    ESFT's selection (arXiv 2407.01906, section 3.2), by token selection ratio or by average
    weight. Ascending numbers, at least one a layer.
    """
    use = np.array(load.tokens if choice.use == "tokens" else load.weights, np.float64)
    chosen = []
    for row in use:
        order = np.argsort(-row, kind="stable")
        reached = np.cumsum(row[order]) >= choice.share * row.sum()
        chosen.append(sorted(order[: int(np.argmax(reached)) + 1].tolist()))
    return chosen


def train_chosen_experts(model: Model, chosen: list[list[int]]) -> None:
    """Freeze `model` but for the `chosen` experts of each layer, whose float weights are trained.

    `model.trainable_parameters()` are then exactly theirs.
    """
    model.freeze()
    for layer, numbers in zip(model.layers, chosen, strict=True):
        experts = layer.feed_forward.experts
        experts.gate_up_proj = ChosenExpertLinear(experts.gate_up_proj, numbers)
        experts.down_proj = ChosenExpertLinear(experts.down_proj, numbers)


def merge_chosen_experts(model: Model) -> None:
    """Put what was trained back into whole layers, in the type of the frozen weights."""
    for layer in model.layers:
        experts = layer.feed_forward.experts
        experts.gate_up_proj = experts.gate_up_proj.merged()
        experts.down_proj = experts.down_proj.merged()


class ChosenExpertLinear(nn.Module):
    """`ExpertLinear` with a trained copy `chosen` [count, in, out] of some experts' matrices.

    Neither gradients nor optimiser state of the other experts exist.
    """

    def __init__(self, linear: ExpertLinear, numbers: list[int]) -> None:
        super().__init__()
        self.linear = linear
        self._numbers = mx.array(numbers, mx.uint32)
        self.chosen = linear.weight[self._numbers]
        self.linear.freeze()

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x [..., rows, in] times the expert of each `indices` [...] -> [..., rows, out]."""

        def product(x: mx.array, chosen: mx.array) -> mx.array:
            return gather_mm(x, self._mixed(chosen, x.dtype), indices, sorted_indices)

        if not sorted_indices:  # a few tokens: the gradient of all experts is as small as they
            return product(x, self.chosen)

        @mx.custom_function
        def forward(x: mx.array, chosen: mx.array) -> mx.array:
            return product(x, chosen)

        @forward.vjp
        def backward(
            primals: tuple[mx.array, ...], d_y: mx.array, output: mx.array
        ) -> tuple[mx.array, mx.array]:
            x, chosen = primals
            (d_x,) = mx.vjp(lambda x: product(x, mx.stop_gradient(chosen)), [x], [d_y])[1]
            return d_x, self._gradient(x, d_y, indices).astype(chosen.dtype)

        return forward(x, self.chosen)

    def merged(self) -> ExpertLinear:
        """The layer with the chosen experts' trained matrices in their places."""
        self.linear.weight = self._mixed(self.chosen, self.linear.weight.dtype)
        return self.linear

    def _mixed(self, chosen: mx.array, dtype: mx.Dtype) -> mx.array:
        """All experts' matrices. Not kept: it is made again for the backward pass."""
        weight = self.linear.weight.astype(dtype)
        weight[self._numbers] = chosen.astype(dtype)
        return weight

    def _gradient(self, x: mx.array, d_y: mx.array, indices: mx.array) -> mx.array:
        """Of the chosen experts: one product each over its rows, which lie together, float32."""
        rows = x.shape[-2]
        blocks = (indices[:, None] == self._numbers).sum(axis=0)  # of each chosen expert
        starts = (indices[:, None] < self._numbers).sum(axis=0)
        segments = mx.stack([starts, starts + blocks], axis=-1) * rows
        x, d_y = (each.flatten(0, 1).astype(mx.float32) for each in (x, d_y))
        return mx.segmented_mm(x.T, d_y, segments.astype(mx.uint32))
