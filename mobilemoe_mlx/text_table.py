"""Figures as aligned text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def labelled(cells: Mapping[str, str]) -> str:
    """A line for each label, the texts beside them in a column."""
    width = max(map(len, cells))
    return "\n".join(f"{label:<{width}}  {text}".rstrip() for label, text in cells.items())


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [f"{row[0]:<{widths[0]}}"]
            + [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    )


def count(number: int) -> str:
    """A count as the paper writes them: 272.5M, 1.26B."""
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def size(number: int) -> str:
    """Bytes in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{number} B"
