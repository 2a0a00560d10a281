"""The costs as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilemoe_mlx.png_pictures import png_bytes
from mobilemoe_mlx.sensitivity.measure import Cost, Sensitivity


def picture(found: Sensitivity) -> bytes:
    """A PNG: costs of layers and kinds, and what was asked for besides: experts, budgets."""
    from matplotlib.figure import Figure

    panels = 1 + (found.estimates is not None) + bool(found.suggestions)
    figure = Figure(figsize=(1.5 + 5 * panels, 4.8), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)
    left, *others = axes[0]
    _bars(left, [*found.layers, *(c for c in found.kinds if c.name != "embedding")])
    if found.estimates is not None:
        _map(figure, others.pop(0), found.estimates.share)
    if found.suggestions:
        _budgets(others.pop(0), found)
    return png_bytes(figure)


def _bars(axes: Any, costs: list[Cost]) -> None:
    places = np.arange(len(costs))[::-1]
    for shift, name, colour in ((0.2, "alone", "tab:blue"), (-0.2, "last", "tab:orange")):
        intervals = [cost.alone if name == "alone" else cost.last for cost in costs]
        means = 1000 * np.array([each.mean for each in intervals])
        ends = 1000 * np.array([(each.low, each.high) for each in intervals]).T
        label = {"alone": "alone, the rest BF16", "last": "last, the rest INT4"}[name]
        axes.barh(places + shift, means, 0.38, color=colour, label=label)
        errors = np.abs(ends - means)
        axes.errorbar(means, places + shift, xerr=errors, fmt="none", ecolor="0.3", elinewidth=0.8)
    axes.set_yticks(places, [cost.name for cost in costs], fontsize=8)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("added held-out loss, thousandths of a nat")
    axes.legend(fontsize=8)


def _map(figure: Any, axes: Any, share: np.ndarray) -> None:
    most = 1000 * float(np.abs(share).max()) or 1.0
    image = axes.imshow(1000 * share, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most)
    figure.colorbar(image, ax=axes, label="estimated share, thousandths of a nat")
    axes.set_xlabel("routed expert")
    axes.set_ylabel("layer")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _budgets(axes: Any, found: Sensitivity) -> None:
    bytes_ = [each.nbytes / 1e6 for each in found.suggestions]
    measured = [each.loss for each in found.suggestions]
    half = found.suggestions[0]  # the documents that all of them are measured on
    axes.plot(bytes_, [each.predicted for each in found.suggestions], "x", label="predicted")
    ends = [(found.int4_bytes / 1e6, half.loss_int4), (found.bf16_bytes / 1e6, half.loss_bf16)]
    line = [ends[0], *zip(bytes_, measured, strict=True), ends[1]]
    axes.plot(*zip(*line, strict=True), "o-", label="measured")
    for (x, y), name in zip(ends, ("INT4", "BF16"), strict=True):
        axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("bytes of all tensors, MB")
    axes.set_ylabel("held-out loss, nats a target")
    axes.legend(fontsize=8)
