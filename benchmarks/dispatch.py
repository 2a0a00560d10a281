"""Forward and backward of one layer's experts on this device, for several dispatch blocks.

Run: python benchmarks/dispatch.py [--preset tiny] [--tokens 4096]. Prints medians and the ratio to
block 1 (a row at a time); block 32 is what the CPU uses, 1 what the GPU uses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported

import mlx.core as mx  # noqa: E402

import mobilemoe_mlx.experts as experts  # noqa: E402
from mobilemoe_mlx.config import preset  # noqa: E402


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Median wall time of `call`, evaluated, in milliseconds."""
    mx.eval(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    args = preset(options.preset)
    layer = experts.Experts(args.hidden_size, args.intermediate_size, args.num_local_experts)
    x = mx.random.normal((options.tokens, args.hidden_size))
    scores = mx.random.uniform(shape=(options.tokens, args.num_local_experts))
    indices = mx.argsort(scores, axis=-1)[:, : args.num_experts_per_tok]
    parameters = layer.trainable_parameters()

    def loss(parameters: Any, x: mx.array, block: int) -> mx.array:
        layer.update(parameters)
        plan = experts.dispatch(indices, args.num_local_experts, block)
        y = layer._swiglu(x[plan.tokens], plan.experts, True)
        return (y.flatten(0, 1)[plan.rows] ** 2).sum()

    step = mx.value_and_grad(loss, argnums=(0, 1))
    print(f"{options.preset}, {options.tokens} tokens, {mx.default_device()}")
    base = None
    for block in (1, 8, 16, 32, 64):
        ms = median_ms(lambda block=block: step(parameters, x, block), options.repeats)
        base = base or ms
        print(f"block {block:>3}: {ms:9.1f} ms  {base / ms:5.2f} x")


if __name__ == "__main__":
    main()
