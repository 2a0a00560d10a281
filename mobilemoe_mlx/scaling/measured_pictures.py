"""Pictures of what a sweep measured; of each kind only where the rows have what it needs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mobilemoe_mlx.scaling.law import Law
from mobilemoe_mlx.scaling.pictures import figure_of, png_of
from mobilemoe_mlx.scaling.results import Row

_NEAR = 1.5  # runs within this factor of some training FLOPs are drawn at them
_ALIKE = 1.25  # the same of memory: runs whose bytes lie within this factor are drawn as equal


def of_rows(every: Sequence[Row], fitted: Sequence[Row], law: Law) -> dict[str, bytes]:
    """Of `every` row the sweet spot over E and g; of the `fitted` ones loss against memory and at
    equal memory and, beside their law, at equal training FLOPs."""
    found = {
        "measured-iso-flop": iso_flop(fitted, law),
        "measured-iso-memory": iso_memory(fitted),
        "measured-loss-against-memory": loss_against_memory(fitted),
        "measured-sweet-spot": sweet_spot(every),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def iso_flop(rows: Sequence[Row], law: Law) -> bytes | None:
    """Loss over active parameters at equal 6 N D, the law's curves and the measured points.

    No run has exactly those FLOPs: each point is moved to them along the law.
    """
    active, tokens = ([getattr(row, name) for row in rows] for name in ("active", "tokens"))
    middle = 6 * math.sqrt(min(active) * max(active) * min(tokens) * max(tokens))
    budgets = [
        flops
        for flops in (middle / 2, middle, 2 * middle)
        if len({row.layers * row.hidden_size for row in _near(rows, flops)}) > 1
    ]
    if not budgets:
        return None
    figure, panels = figure_of(len(budgets))
    sizes = np.geomspace(min(active), max(active), 100)
    for panel, flops in zip(panels, budgets, strict=True):
        for each, points in _grouped(_near(rows, flops), lambda row: row.experts).items():
            curve = law.loss(sizes, flops / (6 * sizes), each)
            (line,) = panel.plot(sizes / 1e3, curve, label=f"E = {each:g}")
            x = np.array([point.active for point in points])
            had = law.loss(x, np.array([point.tokens for point in points]), each)
            moved = law.loss(x, flops / (6 * x), each) - had
            y = np.array([point.loss for point in points]) + moved
            panel.plot(x / 1e3, y, "o", color=line.get_color())
        panel.set_xscale("log")
        panel.set_xlabel("active parameters, thousands")
        panel.set_ylabel("held-out loss, nats per token")
        panel.set_title(f"{flops:.1e} training FLOPs, points moved along the law", fontsize=9)
    return png_of(figure, panels)


def iso_memory(rows: Sequence[Row]) -> bytes | None:
    """Loss over E at about equal INT4 bytes and equal tokens, at each point its shape.

    Shapes of several E that take about as many bytes are joined by a line: along it memory is spent
    on experts in place of layers and width.
    """
    known = [row for row in rows if row.hidden_size and row.int4_bytes]
    lines = [line for line in _alike_in_memory(known) if len({row.experts for row in line}) > 1]
    counts = sorted({row.tokens for line in lines for row in line})
    if not counts:
        return None
    figure, panels = figure_of(len(counts))
    for panel, tokens in zip(panels, counts, strict=True):
        for line in lines:
            trained = [row for row in line if row.tokens == tokens]
            shapes = _grouped(trained, lambda row: (row.experts, row.layers, row.hidden_size))
            x = [experts for experts, _, _ in shapes]
            y = [_mean(row.loss for row in each) for each in shapes.values()]
            kilobytes = _mean(row.int4_bytes for row in line) / 1e3
            panel.plot(x, y, "o-", label=f"about {kilobytes:.0f} kB")
            for (_, layers, hidden), *place in zip(shapes, x, y, strict=True):
                style = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 7}
                panel.annotate(f"{layers} x {hidden}", place, **style)
        ticks = sorted({row.experts for line in lines for row in line})
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [f"{each:g}" for each in ticks])
        panel.set_xlabel("E, expert equivalents over k (at the points: layers x width)")
        panel.set_ylabel("held-out loss, nats per token")
        panel.set_title(f"equal INT4 weights, {tokens:,.0f} tokens")
    return png_of(figure, panels)


def _alike_in_memory(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in groups whose INT4 bytes differ by no more than the factor _ALIKE."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.int4_bytes):
        if groups and row.int4_bytes <= _ALIKE * groups[-1][0].int4_bytes:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def loss_against_memory(rows: Sequence[Row]) -> bytes | None:
    """Loss over INT4 bytes at equal active parameters and tokens: a line a size, a point an E."""
    known = [row for row in rows if row.hidden_size and row.int4_bytes]
    counts = sorted({row.tokens for row in known})
    if not counts or len({row.experts for row in known}) < 2:
        return None
    figure, panels = figure_of(len(counts))
    for panel, tokens in zip(panels, counts, strict=True):
        trained = [row for row in known if row.tokens == tokens]
        for (hidden, layers), points in _grouped(
            trained, lambda row: (row.hidden_size, row.layers)
        ).items():
            by_experts = _grouped(points, lambda row: row.experts)
            x = [_mean(row.int4_bytes / 1e3 for row in each) for each in by_experts.values()]
            y = [_mean(row.loss for row in each) for each in by_experts.values()]
            active = _mean(row.active for row in by_experts[min(by_experts)])
            label = f"{layers} x {hidden}, {active / 1e3:.0f}k active"
            panel.plot(x, y, "o-", label=label)
            for experts, *place in zip(by_experts, x, y, strict=True):
                panel.annotate(
                    f"{experts:g}", place, xytext=(3, 3), textcoords="offset points", fontsize=7
                )
        panel.set_xscale("log")
        panel.set_xlabel("INT4 weights, kB (at the points: E)")
        panel.set_ylabel("held-out loss, nats per token")
        panel.set_title(f"{tokens:,.0f} tokens")
    return png_of(figure, panels)


def sweet_spot(rows: Sequence[Row]) -> bytes | None:
    """Mean loss over seeds as a map of E and g, at the size and tokens of the most combinations."""
    places = _grouped(rows, lambda row: (row.hidden_size, row.layers, row.tokens))
    (hidden, layers, tokens), chosen = max(
        places.items(), key=lambda item: len({(row.experts, row.family) for row in item[1]})
    )
    split = [row for row in chosen if not row.is_dense]
    columns = sorted({row.family for row in split}, key=lambda family: (family[1], family[0]))
    lines = sorted({row.experts for row in split})
    if not hidden or len(columns) < 2 or len(lines) < 2:
        return None
    cells = _grouped(split, lambda row: (row.experts, row.family))
    means = {key: _mean(row.loss for row in each) for key, each in cells.items()}
    grid = np.array([[means.get((e, f), np.nan) for f in columns] for e in lines])
    figure, (panel,) = figure_of(1)
    image = panel.imshow(grid, origin="lower", cmap="viridis_r", aspect="auto")
    for (line, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            best = "*" if value == np.nanmin(grid) else ""
            dark = value > (np.nanmin(grid) + np.nanmax(grid)) / 2
            style = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
            panel.text(column, line, f"{value:.3f}{best}", fontsize=8, **style)
    labels = [f"{g:g}{', shared' if shared else ''}" for g, shared in columns]
    panel.set_xticks(range(len(columns)), labels)
    panel.set_yticks(range(len(lines)), [f"{e:g}" for e in lines])
    panel.set_xlabel("g, granularity")
    panel.set_ylabel("E, expert equivalents over k")
    dense = [row.loss for row in chosen if row.is_dense]
    beside = f"; dense: {_mean(dense):.3f}" if dense else ""
    panel.set_title(
        f"measured, {layers} layers of {hidden}, {tokens:,.0f} tokens{beside}", fontsize=9
    )
    figure.colorbar(image, label="nats per token")
    return png_of(figure, [])


def _near(rows: Sequence[Row], flops: float) -> list[Row]:
    return [row for row in rows if 1 / _NEAR < 6 * row.active * row.tokens / flops < _NEAR]


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by a key, in the keys' order."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(sorted(groups.items(), key=lambda item: item[0]))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))
