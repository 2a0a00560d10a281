"""Head and cross-entropy, value and gradients: our own backward pass against autodiff.

Run: python benchmarks/head_loss.py [--vocab 2048] [--tokens 4096] [--hidden 128]. Prints both
medians of one run, their ratio, and the largest difference between the gradients.
"""

from __future__ import annotations

import argparse
import dataclasses

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
from dispatch import median_ms  # noqa: E402

from mobilemoe_mlx.config import preset  # noqa: E402
from mobilemoe_mlx.model import Model  # noqa: E402
from mobilemoe_mlx.train.loss import cross_entropy_sum  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    args = dataclasses.replace(preset("tiny"), vocab_size=options.vocab, hidden_size=options.hidden)
    model = Model(args)
    weight = model.model.embed_tokens.weight
    hidden = mx.random.normal((1, options.tokens, options.hidden))
    targets = mx.random.randint(0, options.vocab, (1, options.tokens))
    mask = mx.ones((1, options.tokens))

    def ours(weight: mx.array, hidden: mx.array) -> mx.array:
        model.model.embed_tokens.weight = weight
        return cross_entropy_sum(model, hidden, targets, mask, 2048)

    def autodiff(weight: mx.array, hidden: mx.array) -> mx.array:
        return (nn.losses.cross_entropy(hidden @ weight.T, targets) * mask).sum()

    results = {}
    for name, function in (("autodiff", autodiff), ("ours", ours)):
        step = mx.value_and_grad(function, argnums=(0, 1))
        ms = median_ms(lambda step=step: step(weight, hidden), options.repeats)
        results[name] = (ms, step(weight, hidden)[1])
        print(f"{name:>8}: {ms:9.1f} ms")
    print(f"   ratio: {results['autodiff'][0] / results['ours'][0]:9.2f} x")
    gradients = zip(results["autodiff"][1], results["ours"][1], strict=True)
    for name, (a, b) in zip(("weight", "hidden"), gradients, strict=True):
        print(
            f"gradient of {name}: differs by {(mx.abs(a - b).max() / mx.abs(a).max()).item():.1e}"
        )


if __name__ == "__main__":
    main()
