"""The pictures of the comparisons of gradients and of training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mobilemoe_mlx.compare.picture import FLOOR
from mobilemoe_mlx.png_pictures import png_bytes

if TYPE_CHECKING:
    from mobilemoe_mlx.compare.backward import GradientComparison
    from mobilemoe_mlx.compare.steps import StepsComparison

_KINDS = ("self_attn", "router", "experts", "shared_expert", "layernorm")


def draw_gradients(report: GradientComparison) -> bytes:
    """A PNG: the largest error of each kind of parameter over the layers."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind in _KINDS:
        points: dict[int, float] = {}
        for p in report.parameters:
            if p.layer is not None and _kind(p.name) == kind:
                points[p.layer] = max(points.get(p.layer, 0), p.error.max)
        if points:
            layers = sorted(points)
            axes.plot(layers, [max(points[n], FLOOR) for n in layers], marker="o", label=kind)
    if report.tolerance.measure == "max":
        axes.axhline(report.tolerance.value, color="0.5", linestyle="--", label="tolerance")
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel("largest relative error of a gradient")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    axes.set_title(f"{report.checkpoint}: gradients, MLX against PyTorch")
    return png_bytes(figure)


def draw_steps(report: StepsComparison) -> bytes:
    """A PNG: both losses above, how far the two are apart below."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    steps = [s.step for s in report.steps]
    top.plot(steps, [s.torch_loss for s in report.steps], label="PyTorch", linewidth=3, alpha=0.5)
    top.plot(steps, [s.mlx_loss for s in report.steps], label="MLX")
    top.set_ylabel("loss, nats")
    top.legend()
    apart = [abs(s.mlx_loss - s.torch_loss) / abs(s.torch_loss) for s in report.steps]
    bottom.plot(steps, [max(x, FLOOR) for x in apart], label="loss, relative")
    distance = [max(s.weight_distance, FLOOR) for s in report.steps]
    bottom.plot(steps, distance, label="weights, over the way gone")
    moved = [max(1 - s.same_experts, FLOOR) for s in report.steps]
    bottom.plot(steps, moved, label="experts chosen differently")
    bottom.set_yscale("log")
    bottom.set_xlabel("step")
    bottom.set_ylabel("MLX from PyTorch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.legend()
    top.set_title(f"{report.checkpoint}: the same training in both")
    return png_bytes(figure)


def _kind(name: str) -> str | None:
    # The most particular first: shared experts are no routed ones.
    return next((k for k in ("shared_expert", *_KINDS) if k in name), None)
