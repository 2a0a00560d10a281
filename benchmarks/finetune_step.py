"""Time and memory of a fine-tuning step: adapters on the routed experts beside attention-only LoRA.

Run: python benchmarks/finetune_step.py [--preset S] [--layers 4] [--context 1024] [--rounds 3]
[--method lora qlora] [--vocabulary 4096]. Layers of the preset's shape with random weights and
random tokens, one row a step; the vocabulary is small, so that the layers make the step. Each
variant runs in a process of its own (a step to begin with, then two that are timed), the variants
of a round one after another; a ratio is of two figures of one round, and the table has the median
of the rounds. Memory is MLX's peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint  # noqa: E402
from mobilemoe_mlx.config import ModelArgs, preset  # noqa: E402
from mobilemoe_mlx.data.packing import Batch  # noqa: E402
from mobilemoe_mlx.finetune.machine_memory import bound_memory  # noqa: E402
from mobilemoe_mlx.finetune.memory_plan import plan_memory  # noqa: E402
from mobilemoe_mlx.finetune.method import load_base, prepare  # noqa: E402
from mobilemoe_mlx.finetune.recipe import load_finetune_recipe  # noqa: E402
from mobilemoe_mlx.train.step import Trainer  # noqa: E402

# The first is what the others are compared with.
VARIANTS = {
    "attention": ["attention"],
    "attention, shared expert": ["attention", "shared_expert"],
    "attention, shared expert, routed experts": ["attention", "shared_expert", "experts"],
}
TIMED = 2


def shape(options: argparse.Namespace, method: str) -> ModelArgs:
    return dataclasses.replace(
        preset(options.preset),
        num_hidden_layers=options.layers,
        vocab_size=options.vocabulary,
        bos_token_id=1,
        eos_token_id=(2,),
        no_rope_layers=(),
        layer_types=(),
        quantized=method == "qlora",
    )


def measure(args: ModelArgs, method: str, modules: list[str], context: int, folder: Path) -> Any:
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    overrides = ["steps=10", "batch_size=1", f"data.context={context}"]
    overrides += [f"adapter.modules={json.dumps(modules)}"]
    config = load_finetune_recipe(None, method, overrides, args, on_cpu=on_cpu).for_data(None)
    plan = plan_memory(args, config, on_cpu=on_cpu)
    bound_memory(plan.limit, plan.cache)
    model = load_base(folder, config)
    prepare(model, config, 0, [])
    trainer = Trainer(model, config)
    tokens = np.random.default_rng(0).integers(0, args.vocab_size, (1, context + 1))
    tokens = tokens.astype(np.int32)
    ones, documents = np.ones((1, context), np.float32), np.zeros((1, context), np.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ones, documents)
    trainer.run(batch)
    mx.reset_peak_memory()
    began = time.perf_counter()
    for _ in range(TIMED):
        trainer.run(batch)
    return {
        "seconds": (time.perf_counter() - began) / TIMED,
        "peak": mx.get_peak_memory(),
        "trained": sum(weight.size for _, weight in tree_flatten(trainer.parameters)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="S")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", nargs="+", default=["lora", "qlora"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a variant, and a folder
    options = parser.parse_args()
    if options.one:
        variant, folder = options.one
        (method,) = options.method
        args = shape(options, method)
        found = measure(args, method, VARIANTS[variant], options.context, Path(folder))
        print(json.dumps(found))
        return
    print("| method | adapters on | trained | time of a step | MLX's peak |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for method in options.method:
            folder = Path(work) / method
            args = shape(options, method)
            write_random_checkpoint(folder, args, seed=0, quantized=args.quantized)
            rounds = [
                {
                    variant: _in_fresh_process(options, method, variant, folder)
                    for variant in VARIANTS
                }
                for _ in range(options.rounds)
            ]
            for variant in VARIANTS:
                print(_row(method, variant, rounds), flush=True)


def _row(method: str, variant: str, rounds: list[dict[str, Any]]) -> str:
    base = next(iter(VARIANTS))

    def median(key: str, ratio: bool) -> float:
        values = [r[variant][key] / (r[base][key] if ratio else 1) for r in rounds]
        return statistics.median(values)

    spread = [r[variant]["seconds"] / r[base]["seconds"] for r in rounds]
    time_ratio, peak_ratio = median("seconds", True), median("peak", True)
    return (
        f"| {method} | {variant} | {rounds[0][variant]['trained']:,} "
        f"| x{time_ratio:.2f} ({min(spread):.2f} to {max(spread):.2f}; "
        f"{median('seconds', False):.1f} s) "
        f"| x{peak_ratio:.2f} ({median('peak', False) / 1e9:.2f} GB) |"
    )


def _in_fresh_process(options: Any, method: str, variant: str, folder: Path) -> Any:
    words = [sys.executable, __file__, "--one", variant, str(folder), "--method", method]
    words += ["--preset", options.preset, "--layers", str(options.layers)]
    words += ["--context", str(options.context), "--vocabulary", str(options.vocabulary)]
    return json.loads(subprocess.check_output(words, text=True))


if __name__ == "__main__":
    main()
