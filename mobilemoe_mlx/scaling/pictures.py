"""Pictures of a law, of designs, of a fit and of the published models, as PNG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe_mlx import files
from mobilemoe_mlx.all_or_none import write_together
from mobilemoe_mlx.png_pictures import png_bytes
from mobilemoe_mlx.scaling.compare import Costed
from mobilemoe_mlx.scaling.design import Bounds, Space, best_of_each, bounds_of
from mobilemoe_mlx.scaling.fit import Fit
from mobilemoe_mlx.scaling.law import BILLION, Law
from mobilemoe_mlx.scaling.results import Row

EXPERTS = (1, 2, 4, 8, 16, 32)


def write(folder: Path | str, pictures: dict[str, bytes]) -> list[Path]:
    """Write name -> PNG into `folder`, which is made where it is absent: all of them or none."""
    named = {f"{name}.png": content for name, content in pictures.items()}
    return write_together(files.user_path(folder), named)


def of_law(law: Law, tokens: float) -> dict[str, bytes]:
    """Iso-FLOP and iso-memory curves, and loss against memory at equal compute."""
    return {
        "iso-flop": iso_flop(law),
        "iso-memory": iso_memory(law, tokens),
        "loss-against-memory": loss_against_memory(law, tokens),
    }


def iso_flop(law: Law) -> bytes:
    """Loss over active parameters at equal training FLOPs, 6 N D, a line for each E."""
    figure, panels = figure_of(2)
    low, high = (math.log10(each) for each in law.fitted_on.active)
    active = np.logspace(low - 0.3, high + 0.3, 200)
    middle = math.sqrt(math.prod(law.fitted_on.active)) * math.sqrt(math.prod(law.fitted_on.tokens))
    for panel, flops in zip(panels, (3 * middle, 12 * middle), strict=True):
        for experts in EXPERTS:
            losses = law.loss(active, flops / (6 * active), float(experts))
            (line,) = panel.plot(active / BILLION, losses, label=f"E = {experts}")
            lowest = losses.argmin()
            panel.plot(active[lowest] / BILLION, losses[lowest], "o", color=line.get_color())
        span = [each / BILLION for each in law.fitted_on.active]
        panel.axvspan(*span, color="0.93", zorder=0)
        panel.set_xscale("log")
        panel.set_xlabel("active parameters, billions (grey: what the law was fitted on)")
        panel.set_ylabel("predicted loss, nats per token")
        panel.set_title(f"{flops:.1e} training FLOPs")
    return png_of(figure, panels)


def iso_memory(law: Law, tokens: float) -> bytes:
    """Loss over E at equal memory, each the best shape with k = 1 that fits."""
    figure, panels = figure_of(1)
    for memory in (0.25e9, 0.5e9, 1e9, 2e9, 4e9):
        found = _by_experts(Bounds(memory=memory), law, tokens)
        panels[0].plot([*found], [*found.values()], "o-", label=f"{memory / 1e9:g} GB")
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks(EXPERTS, [str(each) for each in EXPERTS])
    panels[0].set_xlabel("E, expert equivalents")
    panels[0].set_ylabel("predicted loss, nats per token")
    panels[0].set_title(f"equal memory, {tokens:.3g} tokens")
    return png_of(figure, panels)


def loss_against_memory(law: Law, tokens: float) -> bytes:
    """Loss over memory at equal FLOPs per token, those of S and of M at a context of 8192."""
    figure, panels = figure_of(2)
    for panel, name in zip(panels, "SM", strict=True):
        bounds = bounds_of(name)
        memories = np.geomspace(0.12, 1.6, 12) * bounds.memory
        for experts in EXPERTS:
            points: dict[float, float] = {}
            for memory in memories:
                within = dataclasses.replace(bounds, memory=memory)
                found = _by_experts(within, law, tokens, (experts,))
                if experts in found:  # some shape is small enough
                    points[memory / 1e9] = found[experts]
            panel.plot([*points], [*points.values()], ".-", label=f"E = {experts}")
        panel.set_xscale("log")
        panel.set_xlabel("memory: INT4 weights and 8-bit cache, GB")
        panel.set_ylabel("predicted loss, nats per token")
        panel.set_title(f"{bounds.flops:.2g} FLOPs per token (MobileMoE-{name}'s)")
    return png_of(figure, panels)


def sweet_spot(bounds: Bounds, law: Law, tokens: float) -> bytes:
    """The lowest loss within the bounds over E and g, as a map."""
    space = Space(active=(1,))
    designs = best_of_each(bounds, tokens, law=law, space=space)
    # The best come first, and of each E and g the best is kept.
    loss = {(each.shape.E, each.shape.g): each.loss for each in reversed(designs)}
    experts = [each for each in space.experts if each > 1]
    grid = np.array([[loss.get((e, g), np.nan) for g in space.granularities] for e in experts])
    figure, panels = figure_of(1)
    image = panels[0].imshow(grid, origin="lower", cmap="viridis_r", aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            best = "*" if value == np.nanmin(grid) else ""
            dark = value > (np.nanmin(grid) + np.nanmax(grid)) / 2
            style = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
            panels[0].text(column, row, f"{value:.4f}{best}", fontsize=8, **style)
    panels[0].set_xticks(range(len(space.granularities)), [str(g) for g in space.granularities])
    panels[0].set_yticks(range(len(experts)), [str(e) for e in experts])
    panels[0].set_xlabel("g, granularity")
    panels[0].set_ylabel("E, expert equivalents (k = 1)")
    panels[0].set_title(f"predicted loss within the bounds, {tokens:.3g} tokens")
    figure.colorbar(image, label="nats per token")
    return png_of(figure, [])


def of_fit(fitted: Fit, rows: Sequence[Row]) -> dict[str, bytes]:
    """Predicted against measured losses, and the residuals over size, tokens and experts."""
    measured = np.array([row.loss for row in rows])
    residuals = np.array(fitted.residuals)
    experts = np.array([row.experts for row in rows])
    figure, (panel,) = figure_of(1)
    for each in sorted(set(experts)):
        of = experts == each
        panel.plot(measured[of], measured[of] + residuals[of], ".", label=f"E = {each:g}")
    ends = [measured.min(), measured.max()]
    panel.plot(ends, ends, color="0.6", zorder=0)
    panel.set_xlabel("measured loss, nats per token")
    panel.set_ylabel("predicted loss, nats per token")
    panel.set_title(f"form '{fitted.form}', RMSE {fitted.law.rmse:.4f}")
    against = png_of(figure, [panel])
    figure, panels = figure_of(3)
    for panel, (label, values) in zip(
        panels,
        {
            "active parameters, billions": [row.active / BILLION for row in rows],
            "tokens, billions": [row.tokens / BILLION for row in rows],
            "experts": [row.experts for row in rows],
        }.items(),
        strict=True,
    ):
        panel.plot(values, residuals, ".")
        panel.axhline(0, color="0.6", zorder=0)
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.set_ylabel("predicted less measured, nats per token")
    return {"predicted-against-measured": against, "residuals": png_of(figure, [])}


def pareto(models: Sequence[Costed]) -> bytes:
    """Published scores over FLOPs per token and over INT4 bytes, counted here."""
    figure, panels = figure_of(2)
    label = f"FLOPs per token at a context of {models[0].accounting.context:,}, billions"
    costs: dict[str, list[float]] = {
        label: [each.accounting.flops_per_token / BILLION for each in models],
        "INT4 weights, GB": [each.accounting.int4_bytes / 1e9 for each in models],
    }
    for panel, (label, figures) in zip(panels, costs.items(), strict=True):
        for each, x in zip(models, figures, strict=True):
            ours = each.name.startswith("MobileMoE")
            panel.plot(x, each.score, "o" if ours else "s", color="C0" if ours else "0.5")
            away = (4, -9 if ours else 4)
            panel.annotate(
                each.name, (x, each.score), xytext=away, textcoords="offset points", fontsize=7
            )
        edge = _edge(list(zip(figures, [each.score for each in models], strict=True)))
        panel.step(*zip(*edge, strict=True), where="post", color="C1", zorder=0, linewidth=1)
        panel.set_xscale("log")
        panel.margins(x=0.15)
        panel.set_xlabel(label)
        panel.set_ylabel("mean of 14 benchmarks, % (published)")
    return png_of(figure, [])


def _edge(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that none beats with less, by cost."""
    edge: list[tuple[float, float]] = []
    for point in sorted(points):
        if not edge or point[1] > edge[-1][1]:
            edge.append(point)
    return edge


def _by_experts(
    bounds: Bounds, law: Law, tokens: float, experts: tuple[int, ...] = EXPERTS
) -> dict[int, float]:
    """E -> the lowest loss within the bounds, with k = 1 and g = 8."""
    space = Space(experts=experts, active=(1,), granularities=(8,))
    designs = best_of_each(bounds, tokens, law=law, space=space)
    lowest = {each.shape.E: each.loss for each in reversed(designs)}
    return dict(sorted(lowest.items()))


def figure_of(number: int) -> tuple[Any, list[Any]]:
    """A figure with so many panels beside each other, and the panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * number, 4), layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False)[0])


def _tick(panel: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten; the usual ones run into each other, or are none."""
    low, high = panel.get_xlim()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [t * 10.0**p for p in powers for t in (1, 2, 5)]
    panel.set_xticks([t for t in ticks if low <= t <= high])
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("")


def png_of(figure: Any, with_legend: list[Any]) -> bytes:
    """The figure as PNG, its logarithmic axes ticked; the panels `with_legend` get one."""
    for panel in with_legend:
        panel.legend(fontsize=7)
        panel.grid(alpha=0.3)
    for panel in figure.axes:
        if panel.get_xscale() == "log" and panel.xaxis.get_transform().base == 10:
            _tick(panel)
    return png_bytes(figure)
