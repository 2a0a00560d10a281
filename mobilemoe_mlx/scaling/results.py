"""Losses that were measured, one training run a line: what `sweep` writes and `fit` reads.

A line is a JSON object with the fields of `Row`; other fields are left alone. Lines that begin with
`#` and empty ones are comments.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.errors import UserError


@dataclass(frozen=True)
class Row:
    """One training run."""

    active: tables.Positive  # parameters per token, embedding included
    tokens: tables.Positive  # trained on
    experts: Annotated[float, tables.Bounds(least=1)]  # E over k, as in `law`
    loss: tables.Positive  # nats per token
    granularity: tables.Positive = 8.0  # g
    shared: bool = True  # there is a shared expert
    seed: int = 0


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
