"""What each method makes of a base model before the run, and writes of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.adapters.adapter_file import adapter_of, save_adapter
from mobilemoe_mlx.adapters.attach import attach
from mobilemoe_mlx.adapters.base_digest import BaseDigest
from mobilemoe_mlx.adapters.survival import survival
from mobilemoe_mlx.adapters.training_record import TrainingRecord
from mobilemoe_mlx.checkpoint import load_save
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.finetune.chosen_experts import (
    choose_experts,
    merge_chosen_experts,
    train_chosen_experts,
)
from mobilemoe_mlx.finetune.expert_load import expert_load
from mobilemoe_mlx.finetune.recipe import FinetuneConfig
from mobilemoe_mlx.int4_rounding import as_quantized, quantize_parameters
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import float_model
from mobilemoe_mlx.train.run_folder import StageFolder
from mobilemoe_mlx.train.step import Trainer


def load_base(folder: Path, config: FinetuneConfig) -> Model:
    """The base model in the form that the method computes it in.

    INT4 stays packed for adapters, and is dequantised exactly for all others. BF16 weights are held
    as bfloat16, or widened where `compute.dtype` is float32.
    """
    is_whole = config.adapter is None and config.method != "experts"
    if is_whole:
        return float_model(load_save.load_model(folder, dtype=mx.float32))
    return load_save.load_model(folder, dtype=getattr(mx, config.compute.dtype))


def prepare(
    model: Model, config: FinetuneConfig, seed: int, sample: Iterable[Batch]
) -> list[list[int]]:
    """Freeze what the method does not train, and attach what it does.

    `sample`: batches by which the method `experts` chooses. Returns its choice, a list of experts a
    layer; of other methods, nothing.
    """
    chosen: list[list[int]] = []
    if config.adapter is not None:
        attach(model, config.adapter, seed)
    elif config.experts is not None:
        load = expert_load(model, sample, document_mask=config.data.document_mask)
        chosen = choose_experts(load, config.experts)
        train_chosen_experts(model, chosen)
    for layer in model.layers:
        router = layer.feed_forward.router
        if config.adapter is None and not config.routing.train:
            router.freeze()
        elif config.experts is not None:
            router.unfreeze()
    return chosen


def write_result(
    trainer: Trainer,
    config: FinetuneConfig,
    folder: StageFolder,
    base: BaseDigest,
    tokenizer_folder: Path,
    training: TrainingRecord | None = None,
) -> Path:
    """Write the adapter, or the model of a method that trains whole weights; returns its folder."""
    model = trainer.model
    if config.adapter is not None:
        parameters = trainer.parameters
        if config.routing.train:
            parameters = trainer.trained_parameters()  # with the selection biases
        save_adapter(
            folder.adapter,
            parameters,
            config.adapter,
            base,
            num_layers=len(model.layers),
            training=training,
            overwrite=True,
        )
        return folder.adapter
    parameters = trainer.all_parameters()
    if config.quantize:
        load_save.save_quantized(
            quantize_parameters(parameters, config.scale_rule),
            as_quantized(model.args),
            folder.model,
            tokenizer_folder=tokenizer_folder,
            overwrite=True,
        )
        return folder.model
    if config.experts is not None:
        merge_chosen_experts(model)
    load_save.save(model, folder.model, tokenizer_folder=tokenizer_folder, overwrite=True)
    return folder.model


def kept_by_int4(trainer: Trainer, config: FinetuneConfig, checkpoint: Checkpoint) -> float | None:
    """How much of an adapter's update a fuse into its INT4 base would keep; None of all else."""
    if config.adapter is None or config.adapter.through_int4:
        return None
    if checkpoint.layout is Layout.FLOAT:
        return None
    adapter = adapter_of(trainer.parameters, config.adapter)
    kept = survival(checkpoint, [(adapter, 1.0)], "unclipped")
    return kept[-1].survives if kept else None


def what_is_trained(trainer: Trainer, config: FinetuneConfig, chosen: list[list[int]]) -> str:
    """Lines for the start of a run: how many parameters, of what, and what becomes of routing."""
    count = sum(weight.size for _, weight in tree_flatten(trainer.parameters))
    total = account(trainer.model.args).total_parameters
    lines = [f"{config.method} trains {count:,} parameters ({count / total:.1%} of the model's)"]
    if (adapter := config.adapter) is not None:
        where = f"layers {adapter.layers}" if adapter.layers else "every layer"
        lines[0] += f": rank {adapter.rank} on {', '.join(adapter.modules)} of {where}."
    elif chosen:
        experts = trainer.model.args.num_local_experts
        counts = ", ".join(str(len(numbers)) for numbers in chosen)
        lines[0] += f": {counts} of the {experts} experts of each layer, in order."
    else:
        lines[0] += "."
    if config.routing.train:
        lines.append(
            f"{'The router has adapters; its' if adapter is not None else 'Router and'} selection "
            "biases are trained, with balancing: each bias moves by "
            f"{config.routing.bias_update_rate:g} a step, z-loss {config.routing.z_loss:g}."
        )
    elif adapter is not None and "router" in adapter.modules:
        lines.append("The router has adapters; selection biases are frozen, without balancing.")
    else:
        lines.append("Router and selection biases are frozen, without balancing.")
    return "\n".join(lines)
