"""What would make a run fit into the memory that there is, the cheapest change first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mobilemoe_mlx import text_table
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.machine_memory import MachineMemory
from mobilemoe_mlx.finetune.memory_plan import MemoryPlan, plan_memory
from mobilemoe_mlx.finetune.recipe import FinetuneConfig, load_finetune_recipe

_SMALL_CHUNK = 64
_SHORTEST_CONTEXT = 128


@dataclass(frozen=True)
class Change:
    """A change of a run: its option, what it costs, and the plan with it."""

    option: str
    cost: str
    plan: MemoryPlan


def memory_changes(args: ModelArgs, config: FinetuneConfig, *, on_cpu: bool) -> list[Change]:
    """The changes that lower the peak of a run, the cheapest first, each by itself.

    First those with which the same is learnt; then shorter contexts; then a base that is held as
    INT4, with adapters.
    """
    now = plan_memory(args, config, on_cpu=on_cpu).peak
    found = []
    for option, cost, changed_args, changed in _candidates(args, config, on_cpu):
        plan = plan_memory(changed_args, changed, on_cpu=on_cpu)
        if plan.peak < now:
            found.append(Change(option, cost, plan))
    return found


def check_memory(
    plan: MemoryPlan,
    machine: MachineMemory,
    args: ModelArgs,
    config: FinetuneConfig,
    *,
    on_cpu: bool,
) -> None:
    """Raise UserError where a run would not fit, naming what would make it fit."""
    if plan.peak <= machine.bytes:
        return
    lines = [
        f"The run ({plan.what}) takes {text_table.size(plan.peak)} of memory, and {machine.what} "
        f"is {text_table.size(machine.bytes)}. What would make it fit, the cheapest first, each by "
        "itself:"
    ]
    changes = memory_changes(args, config, on_cpu=on_cpu)
    for change in changes:
        fits = "fits" if change.plan.peak <= machine.bytes else "does not fit yet"
        lines.append(
            f"  {change.option}: {text_table.size(change.plan.peak)}, {fits} ({change.cost})"
        )
    if not any(change.plan.peak <= machine.bytes for change in changes):
        together = _together(args, config)
        best = plan_memory(args, together, on_cpu=on_cpu)
        fits = "fits" if best.peak <= machine.bytes else "does not fit either"
        lines.append(f"  the --set ones together: {text_table.size(best.peak)}, {fits}")
    if machine.advice:
        lines.append(f"Or {machine.advice}.")
    raise UserError("\n".join(lines))


def _candidates(
    args: ModelArgs, config: FinetuneConfig, on_cpu: bool
) -> Iterator[tuple[str, str, ModelArgs, FinetuneConfig]]:
    if config.rows_at_a_time > 1:
        one = dataclasses.replace(config, micro_batch_size=1)
        yield "--set micro_batch_size=1", "learns the same", args, one
    if config.compute.loss_chunk > _SMALL_CHUNK:
        compute = dataclasses.replace(config.compute, loss_chunk=_SMALL_CHUNK)
        small = dataclasses.replace(config, compute=compute)
        yield f"--set compute.loss_chunk={_SMALL_CHUNK}", "learns the same", args, small
    if not config.compute.activation_checkpointing:
        compute = dataclasses.replace(config.compute, activation_checkpointing=True)
        again = dataclasses.replace(config, compute=compute)
        option = "--set compute.activation_checkpointing=true"
        yield option, "learns the same, a third slower", args, again
    context = config.data.context // 2
    while context >= _SHORTEST_CONTEXT:
        shorter = dataclasses.replace(
            config, data=dataclasses.replace(config.data, context=context)
        )
        yield f"--set data.context={context}", "longer records are cut", args, shorter
        context //= 2
    if config.adapter is not None and config.adapter.rank > AdapterConfig.rank:
        small = _with_rank(config, AdapterConfig.rank)
        yield f"--set adapter.rank={AdapterConfig.rank}", "smaller adapters", args, small
    if config.method == "full" and config.weights == "float32":
        half = dataclasses.replace(config, weights="bfloat16")
        yield "--set weights=bfloat16", "rounded at random at every step", args, half
    if config.adapter is None and not args.quantized:
        lora = _by_method(args, config, "lora", on_cpu)
        yield "--method lora", "trains adapters", args, lora
    if not (args.quantized and config.method == "qlora"):
        packed = dataclasses.replace(args, quantized=True)
        step = "" if args.quantized else ", after `mobilemoe convert --quantize`"
        qlora = _by_method(packed, config, "qlora", on_cpu)
        yield f"--method qlora{step}", "the base as INT4", packed, qlora


def _with_rank(config: FinetuneConfig, rank: int) -> FinetuneConfig:
    assert config.adapter is not None
    adapter = dataclasses.replace(config.adapter, rank=rank)
    return dataclasses.replace(config, adapter=adapter)


def _by_method(
    args: ModelArgs, config: FinetuneConfig, method: Literal["lora", "qlora"], on_cpu: bool
) -> FinetuneConfig:
    """The same data by another method's recipe, with the adapters that `config` has, if any."""
    recipe = load_finetune_recipe(None, method, [], args, on_cpu=on_cpu)
    compute = dataclasses.replace(
        recipe.compute,
        activation_checkpointing=(
            recipe.compute.activation_checkpointing or config.compute.activation_checkpointing
        ),
        loss_chunk=min(recipe.compute.loss_chunk, config.compute.loss_chunk),
    )
    adapter = recipe.adapter
    if config.adapter is not None:
        adapter = dataclasses.replace(config.adapter, kind="lora", through_int4=False)
    return dataclasses.replace(
        recipe,
        data=config.data,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        compute=compute,
        adapter=adapter,
    )


def _together(args: ModelArgs, config: FinetuneConfig) -> FinetuneConfig:
    """`config` with all changes of values, the shortest context included."""
    compute = dataclasses.replace(
        config.compute,
        activation_checkpointing=True,
        loss_chunk=min(config.compute.loss_chunk, _SMALL_CHUNK),
    )
    context = min(config.data.context, _SHORTEST_CONTEXT)
    if config.adapter is not None:
        config = _with_rank(config, min(config.adapter.rank, AdapterConfig.rank))
    return dataclasses.replace(
        config,
        micro_batch_size=1,
        compute=compute,
        data=dataclasses.replace(config.data, context=context),
    )
