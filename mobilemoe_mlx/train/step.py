"""One optimiser step: micro-batches, processes, clipping, AdamW, balancing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import clip_grad_norm
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_unflatten

from mobilemoe_mlx import linux_cpu
from mobilemoe_mlx.adapters.attach import adapter_layers, set_dropout_key
from mobilemoe_mlx.data.packing import PADDING, Batch
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import fake_quantize_parameters
from mobilemoe_mlx.tensor_names import is_always_float32
from mobilemoe_mlx.train import balancing
from mobilemoe_mlx.train.loss import LossSums, loss_sums
from mobilemoe_mlx.train.optimizer import (
    learning_rate,
    make_optimizer,
    rounded_at_random,
    set_learning_rate,
)
from mobilemoe_mlx.train.recipe import LoopConfig


class StepResult(NamedTuple):
    """What one step measured, over all processes."""

    loss: float  # mean cross-entropy a target, nats
    z_loss: float  # mean over tokens of the layers' squared log-sum-exp, summed over layers
    grad_norm: float  # before clipping
    learning_rate: float
    counts: mx.array  # float32 [layers, experts]; [0, 0] of a dense model
    # float32 [layers], the share of those choices that had no room: 0 where training is dropless
    dropped: mx.array


class Trainer:
    """The training state of one stage and the step that advances it.

    `parameters`: master weights, the model's trainable tree in `config.master_type` (the routers'
    always float32). `biases`: the routers' selection biases, float32 [layers, experts]. `model`
    lends its forward pass and holds what is frozen, which keeps its type and is never touched.
    """

    def __init__(
        self, model: Model, config: LoopConfig, group: mx.distributed.Group | None = None
    ) -> None:
        self.model = model
        self.config = config
        self.group = group or mx.distributed.init()
        self.step = 0
        self._routed = {  # the feed-forward layers that route, by their paths
            f"model.layers.{number}.feed_forward": layer.feed_forward
            for number, layer in enumerate(model.layers)
            if "expert_bias" in layer.feed_forward
        }
        for layer in self._routed.values():
            layer.capacity_factor = config.routing.capacity_factor
        self._has_dropout = any(a.dropout_rate > 0 for a in adapter_layers(model).values())
        self.micro_rows = micro_rows(config, self.group.size())
        self._objective_and_gradients = mx.value_and_grad(self._objective)
        if linux_cpu.applies_to(mx.array(0.0, getattr(mx, config.compute.dtype))):
            linux_cpu.keep_freed_memory()
            linux_cpu.use_threads_for(model.args.hidden_size)
        self.adopt(model.trainable_parameters())

    def adopt(self, parameters: dict[str, Any]) -> None:
        """Start from these values of what is trained, with a fresh optimiser.

        The tree may hold selection biases, under the model's names.
        """
        self.model.update(parameters)
        # Without the empty places of layers that have nothing to train.
        trainable = tree_flatten(self.model.trainable_parameters())
        self.parameters: Any = tree_unflatten(
            [(name, weight.astype(self._master_type(name))) for name, weight in trainable]
        )
        biases = [layer.expert_bias for layer in self._routed.values()]
        self.biases = mx.stack(biases).astype(mx.float32) if biases else mx.zeros((0, 0))
        self.optimizer = make_optimizer(self.config.optimizer, self.config.lora_b_rate)
        self.optimizer.init(_in_float32(self.parameters))
        mx.eval(self.parameters, self.biases, self.optimizer.state)

    def _master_type(self, name: str) -> mx.Dtype:
        return mx.float32 if is_always_float32(name) else getattr(mx, self.config.master_type)

    def trained_parameters(self) -> dict[str, Any]:
        """The masters and selection biases, float32, under the model's names."""
        biases = [
            (f"{path}.expert_bias", bias)
            for path, bias in zip(self._routed, self.biases, strict=True)
        ]
        tree: dict[str, Any] = tree_unflatten(tree_flatten(_in_float32(self.parameters)) + biases)
        return tree

    def all_parameters(self) -> dict[str, Any]:
        """The model's whole tree: what is trained, float32, and what is frozen."""
        self.model.update(self.trained_parameters())
        return self.model.parameters()

    def computed_parameters(self) -> dict[str, Any]:
        """What is trained, as the stage's model stands for it: INT4 values in QAT, else itself."""
        parameters = self.trained_parameters()
        if not self.config.quantize:
            return parameters
        return fake_quantize_parameters(parameters, self.config.scale_rule)

    def check_finite(self) -> None:
        """Raise UserError where a weight is not a finite number, as it will be stored."""
        for name, weight in tree_flatten(self.parameters):
            if not mx.isfinite(weight.astype(mx.bfloat16)).all().item():
                raise UserError(
                    f"after step {self.step} {name} has values that are not finite; lower "
                    "optimizer.peak_lr or lengthen optimizer.warmup_steps"
                )

    def run(self, batch: Batch) -> StepResult:
        """Take one step on this process's rows of the global batch.

        Raises UserError, leaving the state as it was, when the loss, a gradient or a selection
        bias is not finite.
        """
        config = self.config
        totals = self._sum(
            [float(batch.loss_mask.sum()), float((batch.documents != PADDING).sum())]
        )
        targets, real = (max(t, 1.0) for t in totals.tolist())

        self.model.train()
        gradients: Any = None
        sums: LossSums | None = None
        micro_batches = _micro_batches(batch, self.micro_rows)
        # The same masks in a resumed run, and where a layer is computed again for its gradient.
        keys = mx.random.split(mx.random.key(self.step), len(micro_batches))
        for micro, key in zip(micro_batches, keys, strict=True):
            if self._has_dropout:
                set_dropout_key(self.model, key)
            part, gradient = self.gradients(micro, targets, real)
            if sums is None:
                sums, gradients = part, gradient
            else:
                sums = LossSums(*map(mx.add, sums, part))
                gradients = tree_map(mx.add, _in_float32(gradients), gradient)
            mx.eval(gradients, sums)
        assert sums is not None
        if self.group.size() > 1:
            average = nn.average_gradients(gradients, self.group)
            gradients = tree_map(lambda g: g * self.group.size(), average)
        counts, dropped = self._sum(sums.counts), self._sum(sums.dropped)
        scalars = self._sum([sums.cross_entropy, sums.z])
        gradients, norm = clip_grad_norm(_in_float32(gradients), config.optimizer.clip_norm)
        loss, z, grad_norm = scalars[0].item() / targets, scalars[1].item() / real, norm.item()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise UserError(
                f"step {self.step + 1}: the loss is {loss} and the gradient norm {grad_norm}; "
                "training stopped. Lower optimizer.peak_lr or lengthen optimizer.warmup_steps"
            )
        biases = balancing.updated_biases(self.biases, counts, config.routing.bias_update_rate)
        if not mx.isfinite(biases.astype(mx.bfloat16)).all().item():  # as they will be stored
            raise UserError(
                f"step {self.step + 1}: the experts' selection biases are beyond bfloat16; "
                "training stopped. Lower routing.bias_update_rate"
            )
        rate = learning_rate(config.optimizer, self.step, config.steps)
        set_learning_rate(self.optimizer, rate, config.lora_b_rate)
        updated = self.optimizer.apply_gradients(gradients, _in_float32(self.parameters))
        # MLX merges the optimisers' trees in the order of a set, another one in each process;
        # sums over parameters, and so a resumed run, would differ in the last bit.
        self.parameters = tree_map(
            lambda old, new: rounded_at_random(new, old.dtype), self.parameters, updated
        )
        self.biases = biases
        mx.eval(self.parameters, self.optimizer.state, self.biases)
        self._install(self.parameters, self.biases)  # lets go of the last step's weights
        self.step += 1
        dropped = dropped / mx.maximum(counts.sum(axis=-1), 1)
        return StepResult(loss, z, grad_norm, rate, counts, dropped)

    def gradients(self, batch: Batch, targets: float, real: float) -> tuple[LossSums, Any]:
        """A micro-batch's sums, and the gradients of its share of the objective as a tree.

        targets, real: how many targets that count, and real tokens, the whole batch has.
        """
        arrays = [mx.array(part) for part in batch]
        counts = mx.array(targets), mx.array(real)
        (_, sums), gradient = self._objective_and_gradients(
            self.parameters, self.biases, arrays, *counts
        )
        return LossSums(*sums), gradient

    def _objective(
        self,
        parameters: Any,
        biases: mx.array,
        batch: list[mx.array],
        targets: mx.array,
        real: mx.array,
    ) -> tuple[mx.array, LossSums]:
        config = self.config
        self._install(*self._forward_form(parameters, biases))
        sums = loss_sums(
            self.model,
            *batch,
            document_mask=config.data.document_mask,
            activation_checkpointing=config.compute.activation_checkpointing,
            chunk=config.compute.loss_chunk,
        )
        # z-loss: mean over tokens, summed over layers.
        return sums.cross_entropy / targets + config.routing.z_loss * sums.z / real, sums

    def _forward_form(self, parameters: Any, biases: mx.array) -> tuple[Any, mx.array]:
        """Master weights to what the forward pass uses: fake-quantised, in the compute type."""
        if self.config.quantize:
            parameters = fake_quantize_parameters(parameters, self.config.scale_rule)
            biases = biases.astype(mx.bfloat16).astype(mx.float32)  # as they will be stored
        dtype = getattr(mx, self.config.compute.dtype)

        def cast(name: str, weight: mx.array) -> mx.array:
            # Modules that hold other parameters beside a frozen weight cast them themselves.
            is_own = name.endswith(".weight") and not is_always_float32(name)
            return weight.astype(dtype) if is_own else weight

        return tree_map_with_path(cast, parameters), biases

    def _install(self, parameters: Any, biases: mx.array) -> None:
        self.model.update(parameters)
        for layer, bias in zip(self._routed.values(), biases, strict=True):
            layer.expert_bias = bias

    def _sum(self, values: Sequence[Any] | mx.array) -> mx.array:
        """Elementwise sum over the processes, float32."""
        array = values if isinstance(values, mx.array) else mx.stack([mx.array(v) for v in values])
        if not array.size:  # expert counts of a dense model
            return array
        return mx.distributed.all_sum(array.astype(mx.float32), group=self.group)


def _in_float32(tree: Any) -> Any:
    return tree_map(lambda x: x.astype(mx.float32), tree)


def micro_rows(config: LoopConfig, processes: int) -> int:
    """Rows that a process computes at a time. Raises UserError when they do not divide its rows."""
    rows = config.batch_size // processes
    micro = min(config.rows_at_a_time, rows)
    if rows % micro:
        raise UserError(
            f"micro_batch_size {micro} does not divide a process's {rows} rows (batch_size "
            f"{config.batch_size}): `--set micro_batch_size=1` always does."
        )
    return micro


def _micro_batches(batch: Batch, rows: int) -> list[Batch]:
    starts = range(0, len(batch.inputs), rows)
    return [Batch(*(part[start : start + rows] for part in batch)) for start in starts]
