"""Peak memory of training, in bytes per parameter, by MLX's own count of its allocations.

Run: python benchmarks/train_memory.py [--hidden 512] [--layers 4] [--dtype bfloat16]. Trains two
steps of a model of the family's shape, with activation checkpointing, on random tokens: once with
all rows at a time and once with gradient accumulation.
"""

from __future__ import annotations

import argparse
import dataclasses

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from mobilemoe_mlx.config import preset  # noqa: E402
from mobilemoe_mlx.data.packing import Batch  # noqa: E402
from mobilemoe_mlx.model import Model  # noqa: E402
from mobilemoe_mlx.train.recipe import ComputeConfig, DataConfig, OptimizerConfig, StageConfig  # noqa: E402
from mobilemoe_mlx.train.step import Trainer  # noqa: E402

ROWS, CONTEXT = 2, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    options = parser.parse_args()
    args = dataclasses.replace(
        preset("tiny"),
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        intermediate_size=options.hidden // 2,
        intermediate_size_mlp=options.hidden * 2,
        no_rope_layers=(),
        layer_types=(),
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, args.vocab_size, (ROWS, CONTEXT + 1)).astype(np.int32)
    ones = np.ones((ROWS, CONTEXT), np.float32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ones, np.zeros((ROWS, CONTEXT), np.int32))
    for micro in (ROWS, 1):
        config = StageConfig(
            data=DataConfig("unused", CONTEXT),
            optimizer=OptimizerConfig(1e-4),
            tokens=10 * ROWS * CONTEXT,
            batch_size=ROWS,
            micro_batch_size=micro,
            compute=ComputeConfig(options.dtype, activation_checkpointing=True),
        )
        trainer = Trainer(Model(args), config)
        parameters = sum(p.size for _, p in tree_flatten(trainer.parameters))
        mx.reset_peak_memory()
        trainer.run(batch)
        trainer.run(batch)
        peak = mx.get_peak_memory()
        print(
            f"{parameters / 1e6:.0f} M parameters, {options.dtype}, {ROWS // micro} micro-batches: "
            f"peak {peak / 1e9:.2f} GB, {peak / parameters:.1f} bytes per parameter"
        )
        del trainer


if __name__ == "__main__":
    main()
