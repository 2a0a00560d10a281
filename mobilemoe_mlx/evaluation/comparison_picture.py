"""A comparison as a picture: differences with their intervals, a panel for each metric."""

from __future__ import annotations

import numpy as np

from mobilemoe_mlx.evaluation.comparison import Comparison
from mobilemoe_mlx.evaluation.paired import LEVEL, Interval
from mobilemoe_mlx.png_pictures import png_bytes


def picture(found: Comparison) -> bytes:
    """A PNG: tasks from top to bottom, a colour for each model."""
    from matplotlib.figure import Figure

    metrics = dict.fromkeys(d.metric for model in found.models for d in model.differences)
    tasks = dict.fromkeys(d.task for model in found.models for d in model.differences)
    height = 1.6 + 0.28 * (len(tasks) + 1) * max(2, len(found.models))
    figure = Figure(figsize=(3 + 3.2 * len(metrics), height), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    rows = [*tasks, "mean of these"]
    shifts = np.linspace(0.28, -0.28, len(found.models)) if len(found.models) > 1 else [0.0]
    for panel, metric in zip(panels, metrics, strict=True):
        better, furthest = "more", 0.0
        for number, (model, shift) in enumerate(zip(found.models, shifts, strict=True)):
            shown: list[tuple[str, Interval]] = []
            for each in model.differences:
                if each.metric == metric:
                    shown.append((each.task, each.difference))
                    better = "more" if each.higher_is_better else "less"
            averages = [a for a in model.averages if a.metric == metric]
            shown += [(rows[-1], average.difference) for average in averages]
            means = np.array([interval.mean for _, interval in shown])
            ends = np.array([(interval.low, interval.high) for _, interval in shown]).T
            furthest = max(furthest, float(np.abs(ends).max()))
            y = [len(rows) - 1 - rows.index(name) + shift for name, _ in shown]
            panel.errorbar(
                means,
                y,
                xerr=np.abs(ends - means),
                fmt="o",
                markersize=4,
                color=f"C{number}",
                label=model.name,
            )
        if furthest == 0:  # else the axis would be as wide as a rounding error
            panel.set_xlim(-0.01, 0.01)
        panel.axvline(0, color="0.3", linewidth=0.8)
        panel.set_title(f"{metric} ({better} is better)", fontsize=9)
        panel.set_xlabel(f"difference from {found.base}", fontsize=8)
        panel.locator_params(axis="x", nbins=5)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), rows[::-1], fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.suptitle(f"Differences question by question, {LEVEL:.0%} intervals", fontsize=10)
    return png_bytes(figure)
