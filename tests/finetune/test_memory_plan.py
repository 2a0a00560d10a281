"""The planned memory against what MLX measures, and what is said where it does not suffice."""

from __future__ import annotations

import dataclasses
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobilemoe_mlx.config import ModelArgs, preset
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.machine_memory import MachineMemory, bound_memory, machine_memory
from mobilemoe_mlx.finetune.memory_changes import check_memory, memory_changes
from mobilemoe_mlx.finetune.memory_plan import MemoryPlan, plan_memory
from mobilemoe_mlx.finetune.method import prepare
from mobilemoe_mlx.finetune.recipe import METHODS, FinetuneConfig, load_finetune_recipe
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.train.step import Trainer

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "finetune_memory.py"


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def recipe(args: ModelArgs, method: str | None, *overrides: str) -> FinetuneConfig:
    overrides = ("steps=10", *overrides)
    return load_finetune_recipe(None, method, overrides, args, on_cpu=True).for_data(None)


@pytest.mark.skipif(sys.platform != "linux", reason="the counts of a Mac are others")
@pytest.mark.parametrize("name", ["many layers", "large vocabulary", "many experts"])
@pytest.mark.parametrize("method", METHODS)
def test_the_plan_is_what_a_step_takes(
    method: str, name: str, benchmark: dict[str, Any], tmp_path: Path
) -> None:
    measure: Callable[..., tuple[MemoryPlan, dict[str, int]]] = benchmark["measure"]
    args, overrides = benchmark["shape"](name)
    plan, measured = measure(args, method, overrides, tmp_path / "model")
    assert plan.peak == pytest.approx(measured["mlx"], rel=0.15)


def test_the_goals_at_full_size() -> None:
    """QLoRA with a row of 2,048 tokens: S below 6 GB, M below 10 GB."""
    for name, most in (("S", 6e9), ("M", 10e9)):
        args = dataclasses.replace(preset(name), quantized=True)
        config = recipe(args, "qlora", "batch_size=1", "data.context=2048")
        for on_cpu in (True, False):
            assert plan_memory(args, config, on_cpu=on_cpu).peak < most


def test_parts_add_up_and_are_told() -> None:
    args = preset("S")
    plan = plan_memory(args, recipe(args, "lora"), on_cpu=True)
    assert plan.peak == sum(plan.parts.values()) and plan.peak >= max(plan.others.values())
    text = plan.text(MachineMemory(8 * 10**9, "free memory", "close other programs"), 10**8)
    for part in ("frozen weights", "adapters", "optimiser", "activations, 20 layers", "8.00 GB"):
        assert part in text
    assert "close other programs" in text and "\n" not in plan.short(machine_memory(), 10**8)


def test_a_run_that_does_not_fit_is_told_what_would() -> None:
    args = preset("S")
    config = recipe(args, "full", "batch_size=4", "data.context=2048")
    plan = plan_memory(args, config, on_cpu=True)
    changes = memory_changes(args, config, on_cpu=True)
    options = [change.option for change in changes]
    order = ["micro_batch_size=1", "checkpointing=true", "context=1024", "weights=bfloat16"]
    order += ["method lora", "method qlora"]
    places = [next(i for i, o in enumerate(options) if word in o) for word in order]
    assert places == sorted(places)
    assert all(change.plan.peak < plan.peak for change in changes)
    # What is said of another method is what that method would say of itself.
    packed = dataclasses.replace(args, quantized=True)
    qlora = recipe(packed, "qlora", "batch_size=4", "data.context=2048")
    assert changes[-1].plan.peak == plan_memory(packed, qlora, on_cpu=True).peak
    machine = MachineMemory(plan.peak - 1, "free memory", "")
    with pytest.raises(UserError, match=r"takes .* of memory") as error:
        check_memory(plan, machine, args, config, on_cpu=True)
    for change in changes:
        assert change.option in str(error.value)
    check_memory(plan, MachineMemory(plan.peak, "", ""), args, config, on_cpu=True)
    tiny = MachineMemory(1000, "free memory", "buy more")
    with pytest.raises(UserError, match=r"does not fit either\nOr buy more\."):
        check_memory(plan, tiny, args, config, on_cpu=True)


def test_300_steps_of_varying_lengths_hold_the_peak() -> None:
    args = dataclasses.replace(
        preset("tiny"),
        num_hidden_layers=1,
        vocab_size=96,
        num_local_experts=4,
        no_rope_layers=(),
        layer_types=(),
    )
    config = recipe(args, "lora", "batch_size=1", "data.context=64")
    mx.random.seed(0)
    model = Model(args)
    prepare(model, config, 0, [])
    trainer = Trainer(model, config)
    rng = np.random.default_rng(0)
    limits = mx.set_memory_limit(2**40), mx.set_cache_limit(2**40)
    bound_memory(10**7, cache=10**7)

    def step(length: int) -> None:
        tokens = rng.integers(0, args.vocab_size, (1, length + 1)).astype(np.int32)
        ones = np.ones((1, length), np.float32)
        documents = np.zeros((1, length), np.int32)
        trainer.run(Batch(tokens[:, :-1], tokens[:, 1:], ones, documents))

    try:
        mx.reset_peak_memory()
        lengths = list(range(8, 65))
        for length in lengths:  # MLX keeps a few hundred bytes of constants for each shape
            step(length)
        active, peak = mx.get_active_memory(), mx.get_peak_memory()
        mx.reset_peak_memory()
        for length in rng.choice(lengths, 300 - len(lengths)):
            step(int(length))
        assert mx.get_peak_memory() <= 1.1 * peak
        # A row of activations kept of each step would be ten times as much.
        assert mx.get_active_memory() <= active + 50_000
        assert mx.get_cache_memory() <= 10**7
    finally:
        mx.set_memory_limit(limits[0])
        mx.set_cache_limit(limits[1])
