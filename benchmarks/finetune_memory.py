"""Memory of one fine-tuning step: what is predicted, beside what MLX and Linux measure.

Run: python benchmarks/finetune_memory.py [--preset S] [--method qlora] [--set KEY=VALUE ...]
Without --preset: all methods on three small shapes. Random weights; each step in a fresh process.
The resident set is what the process grew by.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint  # noqa: E402
from mobilemoe_mlx.config import ModelArgs, preset  # noqa: E402
from mobilemoe_mlx.data.packing import Batch  # noqa: E402
from mobilemoe_mlx.finetune.memory_plan import MemoryPlan, plan_memory  # noqa: E402
from mobilemoe_mlx.finetune.method import load_base, prepare  # noqa: E402
from mobilemoe_mlx.finetune.recipe import METHODS, load_finetune_recipe  # noqa: E402
from mobilemoe_mlx.train.step import Trainer  # noqa: E402

# Hidden size, layers, vocabulary, experts, width of an expert, query heads; rows and tokens a step.
SHAPES = {
    "many layers": ((64, 6, 480, 8, 32, 1), (2, 128)),
    "large vocabulary": ((128, 2, 8192, 8, 64, 2), (1, 256)),
    "many experts": ((128, 2, 512, 32, 96, 2), (1, 192)),
}


def shape(name: str) -> tuple[ModelArgs, list[str]]:
    """A small model, and the rows and tokens of its steps as overrides of a recipe."""
    (hidden, layers, vocabulary, experts, width, heads), (rows, context) = SHAPES[name]
    args = dataclasses.replace(
        preset("tiny"),
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        num_local_experts=experts,
        num_attention_heads=heads,
        intermediate_size=width,
        intermediate_size_mlp=2 * hidden,
        no_rope_layers=(),
        layer_types=(),
    )
    return args, [f"batch_size={rows}", f"data.context={context}"]


def measure(
    args: ModelArgs, method: str, overrides: list[str], folder: Path
) -> tuple[MemoryPlan, dict[str, int]]:
    """Take two steps with random weights, written to `folder`; -> (plan, measured bytes)."""
    quantized = method in ("qlora", "qat-lora")
    args = dataclasses.replace(args, quantized=quantized)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    overrides = ["steps=10", *overrides]
    config = load_finetune_recipe(None, method, overrides, args, on_cpu=on_cpu).for_data(None)
    plan = plan_memory(args, config, on_cpu=on_cpu)
    if not (folder / "config.json").exists():
        write_random_checkpoint(folder, args, seed=0, quantized=quantized)
    rows, context = config.batch_size, config.data.context
    tokens = np.random.default_rng(0).integers(0, args.vocab_size, (rows, context + 1))
    tokens = tokens.astype(np.int32)
    ones = np.ones((rows, context), np.float32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ones, np.zeros((rows, context), np.int32))
    gc.collect()
    mx.clear_cache()
    before, resident = mx.get_active_memory(), _resident("VmRSS")
    _forget_highest_resident()
    limit = mx.set_memory_limit(before + plan.limit)  # as `bound_memory` does for large runs
    mx.reset_peak_memory()
    model = load_base(folder, config)
    prepare(model, config, 0, [batch])
    trainer = Trainer(model, config)
    trainer.run(batch)
    trainer.run(batch)
    mx.set_memory_limit(limit)
    return plan, {
        "mlx": mx.get_peak_memory() - before,
        "resident": _resident("VmHWM") - resident,
    }


def _resident(field: str) -> int:
    """Bytes of this process's resident set, now (VmRSS) or at its highest (VmHWM); Linux only."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _forget_highest_resident() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", help="S, M or L instead of the small shapes")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--folder", help="where the checkpoint of random weights is, or is written")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a shape: measure it in this process
    options = parser.parse_args()
    methods = options.method or METHODS
    if options.one:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(options.folder or temporary) / "model"
            args, own = shape(options.one) if options.one in SHAPES else (preset(options.one), [])
            plan, found = measure(args, methods[0], [*own, *options.overrides], folder)
        print(json.dumps({"predicted": plan.peak, "moment": plan.moment, **found}))
        return
    print(f"{'method':10} {'shape':18} {'predicted':>10} {'MLX':>10} {'resident':>10}  highest at")
    for name in [options.preset] if options.preset else SHAPES:
        for method in methods:
            found = _in_fresh_process(name, method, options.overrides, options.folder)
            sizes = [f"{found[key] / 1e6:,.1f} MB" for key in ("predicted", "mlx", "resident")]
            error = found["predicted"] / found["mlx"] - 1
            print(
                f"{method:10} {name:18} {sizes[0]:>10} {sizes[1]:>10} {sizes[2]:>10}  "
                f"{found['moment']} ({error:+.0%})",
                flush=True,
            )


def _in_fresh_process(
    name: str, method: str, overrides: list[str], folder: str | None
) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", name, "--method", method]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--folder", folder] if folder else []
    result: dict[str, Any] = json.loads(subprocess.check_output(words, text=True))
    return result


if __name__ == "__main__":
    main()
