"""The figures of `bench` as a picture: speed over the length of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilemoe_mlx.png_pictures import png_bytes

if TYPE_CHECKING:
    from mobilemoe_mlx.bench.results import Results


def draw(results: Results) -> bytes:
    """A PNG: prefill to the left, decode to the right, a line for each engine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, name in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        lengths: set[int] = set()
        for engine in results.engines:
            prompts = list(engine.contexts)
            rates = [getattr(measured, name) for measured in engine.contexts.values()]
            panel.plot(prompts, rates, marker="o", label=engine.name)
            lengths |= {*prompts}
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(lengths), [f"{length:,}" for length in sorted(lengths)])
        panel.set_yscale("log")
        panel.set_xlabel("tokens of the prompt")
        panel.set_ylabel(f"{name}, tokens/s")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.suptitle(f"{results.cpu}, {results.threads} threads", fontsize=9)
    return png_bytes(figure)
