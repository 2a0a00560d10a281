"""The picture of a numerics report: error and expert agreement over the layers."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from mobilemoe_mlx.compare.comparison import Comparison

FLOOR = 1e-9  # where an error of zero is drawn on the logarithmic axis


def draw(report: Comparison) -> bytes:
    """Return `report` as a PNG: errors above (log scale), agreement of selected experts below."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    layers = [row.layer for row in report.layers]
    end = len(layers)  # the logits, after the last layer
    for label, marker in (("max", "o"), ("mean", "s")):
        errors = [getattr(row.hidden, label) for row in report.layers]
        (line,) = top.plot(layers, [max(e, FLOOR) for e in errors], marker=marker, label=label)
        at_end = max(getattr(report.logits, label), FLOOR)
        top.plot([end], [at_end], marker=marker, color=line.get_color())
    measure, limit = report.tolerance
    top.axhline(limit, color="0.5", linestyle="--", label=f"tolerance (logits, {measure})")
    top.set_yscale("log")
    top.set_ylabel("relative error")
    top.legend()
    top.set_title(
        f"{report.checkpoint}: MLX {report.mlx_dtype} against PyTorch {report.torch_dtype}, "
        f"{report.tokens} tokens"
    )
    agreement = [100 * row.selection_agreement for row in report.layers]
    bottom.plot(layers, agreement, marker="o")
    bottom.set_ylim(min(agreement) - 1, 100.5)
    bottom.set_ylabel("same experts, %")
    bottom.set_xlabel("layer (the last point above: logits)")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return png(figure)


def png(figure: Figure) -> bytes:
    """A figure as the file that reports write."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
