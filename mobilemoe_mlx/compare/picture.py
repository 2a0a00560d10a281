"""The picture of a numerics report: error and expert agreement over the layers, KL over tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mobilemoe_mlx.png_pictures import png_bytes

if TYPE_CHECKING:
    from mobilemoe_mlx.compare.comparison import Comparison

FLOOR = 1e-9  # where an error of zero is drawn on the logarithmic axis
_KL_FLOOR = 1e-16  # the same of a divergence, which is about the square of an error


def draw(report: Comparison) -> bytes:
    """Return `report` as a PNG: what both sides show, one below the other."""
    panels: list[Callable[[Axes, Comparison], None]] = [_errors]
    if any(layer.selection_agreement is not None for layer in report.layers):
        panels.append(_experts)
    panels.append(_divergence)
    figure = Figure(figsize=(8, 2 + 2.2 * len(panels)), layout="constrained")
    figure.suptitle(report.title, fontsize="medium", wrap=True)
    every = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, panel in zip(every, panels, strict=True):
        panel(axes, report)
        if panel is _divergence:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        elif report.layers:
            axes.set_xlim(-0.3, len(report.layers) + 0.3)  # layers and logits, one below the other
    return png_bytes(figure)


def _errors(axes: Axes, report: Comparison) -> None:
    """Of the residual stream after each layer that both show, and of the logits after the last."""
    shown = [(row.layer, row.hidden) for row in report.layers if row.hidden is not None]
    end = len(report.layers)
    for label, marker in (("max", "o"), ("mean", "s")):
        errors = [max(getattr(error, label), FLOOR) for _, error in shown]
        (line,) = axes.plot([layer for layer, _ in shown], errors, marker=marker, label=label)
        at_end = max(getattr(report.logits, label), FLOOR)
        axes.plot([end], [at_end], marker=marker, color=line.get_color())
    measure, limit = report.tolerance
    what = "tolerance" if report.is_judged else "rounding"
    axes.axhline(limit, color="0.5", linestyle="--", label=f"{what} (logits, {measure})")
    axes.set_yscale("log")
    axes.set_ylabel("relative error")
    layers = _ticks(end) if shown else []
    axes.set_xticks([*layers, end], [*map(str, layers), "logits"])
    axes.set_xlabel("layer" if shown else "")
    axes.legend()


def _experts(axes: Axes, report: Comparison) -> None:
    layers = [row.layer for row in report.layers]
    agreement = [100 * (row.selection_agreement or 0) for row in report.layers]
    axes.plot(layers, agreement, marker="o")
    axes.set_ylim(min(agreement) - 1, 100.5)
    axes.set_xticks(_ticks(len(layers)))
    axes.set_ylabel("same experts, %")
    axes.set_xlabel("layer")


def _ticks(layers: int) -> list[int]:
    """The layers whose numbers are written, at most ten of them."""
    return list(range(0, layers, max(1, math.ceil(layers / 10))))


def _divergence(axes: Axes, report: Comparison) -> None:
    axes.plot([max(kl, _KL_FLOOR) for kl in report.kl_by_token], marker=".", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("KL(B || A), nats")
    axes.set_xlabel("token")
