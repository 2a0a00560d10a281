"""Losses that were measured, one training run a line: what `sweep` writes and `fit` reads.

A line is a JSON object with the fields of `Row`; other fields are left alone. Lines that begin with
`#` and empty ones are comments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.errors import UserError


@dataclass(frozen=True)
class Row:
    """One training run."""

    # Bounds far outside of what was ever trained: beyond, something else was written by mistake.
    active: Annotated[float, tables.Bounds(least=1, most=1e14)]  # per token, embedding included
    tokens: Annotated[float, tables.Bounds(least=1, most=1e17)]  # trained on
    experts: Annotated[float, tables.Bounds(least=1, most=1e5)]  # E over k, as in `law`
    loss: Annotated[float, tables.Bounds(least=1e-3, most=20)]  # nats per token; chance has ln V
    granularity: Annotated[float, tables.Bounds(least=1, most=1e4)] = 8.0  # g
    shared: bool = True  # there is a shared expert
    seed: int = 0
    # What a sweep writes beside it, for pictures; 0: not known.
    hidden_size: tables.CountOrZero = 0
    layers: tables.CountOrZero = 0
    int4_bytes: tables.NotNegative = 0.0

    @property
    def is_dense(self) -> bool:
        """Whether there is nothing to split or share."""
        return self.experts == 1

    @property
    def family(self) -> tuple[float, bool]:
        """Granularity and whether there is a shared expert."""
        return self.granularity, self.shared


def of_family(rows: Sequence[Row], granularity: float | None, shared: bool | None) -> list[Row]:
    """The rows of one granularity, with or without a shared expert (None: either), and the dense.

    Raises UserError where there are none but dense ones.
    """
    kept = [
        row
        for row in rows
        if row.is_dense or (granularity in (None, row.granularity) and shared in (None, row.shared))
    ]
    if all(row.is_dense for row in kept) and kept != list(rows):
        known = sorted({row.family for row in rows if not row.is_dense})
        there = ", ".join(
            f"g = {g:g} {'with' if s else 'without'} a shared expert" for g, s in known
        )
        raise UserError(f"No row is of that granularity and sharing; there are {there}.")
    return kept


def read_rows(path: Path | str) -> list[Row]:
    """The rows of a JSON Lines file; raises UserError naming the line and what is wrong in it."""
    path = files.user_path(path)
    names = [f.name for f in dataclasses.fields(Row)]
    rows = []
    for number, line in enumerate(files.read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}, line {number}"
        values = files.parse_json(line, where)
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected an object, found {type(values).__name__}.")
        known = {name: values[name] for name in names if name in values}
        try:
            rows.append(tables.read(Row, known))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows of results.")
    return rows
