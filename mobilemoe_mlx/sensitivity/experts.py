"""What rounding each routed expert costs: estimated for all from two gradients, measured for some.

To second order a loss changes along a step d by the mean of its gradients at both ends, times d
(the trapezoid rule). With the gradient of the BF16 model and that of the model that is rounded
whole, each expert's share is that mean times its own rounding error. The shares of all tensors add
up to the loss of the whole rounding, which an expert's gradient in the BF16 model alone, near a
minimum of its training loss, says little of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.sensitivity.parts import Part, Rounding
from mobilemoe_mlx.tensor_names import is_expert_matrix
from mobilemoe_mlx.train.loss import loss_sums


@dataclass(frozen=True)
class ExpertEstimates:
    """Changes of the held-out loss, nats a target, float64 [layers, experts] each."""

    first_order: np.ndarray  # the BF16 model's gradient times the rounding error
    share: np.ndarray  # the mean of both gradients times it: what `ranked` goes by

    def ranked(self) -> list[tuple[int, int]]:
        """(layer, expert), the costliest first."""
        order = np.argsort(-self.share, axis=None, kind="stable")
        layers, experts = np.unravel_index(order, self.share.shape)
        return list(zip(layers.tolist(), experts.tolist(), strict=True))


def expert_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts that hold the routed experts."""
    return tuple(p for p in parts if is_expert_matrix(p.parameter.removesuffix(".weight")))


def estimate_experts(
    rounding: Rounding, parts: Sequence[Part], batches: Sequence[Batch], *, document_mask: bool
) -> ExpertEstimates:
    """Two passes forward and backward over `batches`; `parts`: all that INT4 rounds.

    Beside the model, one gradient of its experts is in memory.
    """
    experts = expert_parts(parts)
    first = _gradient_times_error(rounding, experts, batches, document_mask)
    with rounding.of(parts):
        last = _gradient_times_error(rounding, experts, batches, document_mask)
    return ExpertEstimates(first, (first + last) / 2)


def _gradient_times_error(
    rounding: Rounding, parts: Sequence[Part], batches: Sequence[Batch], document_mask: bool
) -> np.ndarray:
    """[layers, experts]; the gradient is that of the model as it is now."""
    model = rounding.model
    args = model.args
    products = np.zeros((args.num_hidden_layers, args.num_local_experts))
    current = dict(tree_flatten(model.parameters()))
    now = {part.parameter: current[part.parameter] for part in parts}

    def loss(weights: dict[str, mx.array], batch: Batch) -> mx.array:
        model.update(tree_unflatten(list(weights.items())))
        arrays = (mx.array(array) for array in batch)
        inputs, targets, mask, documents = arrays
        sums = loss_sums(model, inputs, targets, mask, documents, document_mask=document_mask)
        return sums.cross_entropy

    targets = sum(float(batch.loss_mask.sum()) for batch in batches)
    try:
        for batch in batches:
            gradients = mx.grad(loss)(now, batch)
            for part in parts:
                error = rounding.rounded(part) - rounding.weight(part)
                product = (gradients[part.parameter] * error).sum(axis=(1, 2))
                products[part.layer] += np.array(product, np.float64) / targets
    finally:  # the model holds what was differentiated
        model.update(tree_unflatten(list(now.items())))
    return products
