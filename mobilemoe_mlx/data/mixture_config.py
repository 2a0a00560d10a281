"""A mixture file: the format of its records and its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.data.source_config import Format, SourceConfig
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finite_number import is_finite_number


@dataclass(frozen=True)
class _MixtureTable:
    format: Format
    sources: tuple[Any, ...] = ()


@dataclass(frozen=True)
class MixtureConfig:
    """What a mixture file says: the format of its records and the sources."""

    format: Format
    sources: tuple[SourceConfig, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MixtureConfig:
        """Check the content of a mixture file; raises `UserError`."""
        table = tables.read(_MixtureTable, values)
        if not table.sources:
            raise UserError("a mixture needs at least one [[sources]] table")
        sources = tuple(SourceConfig.from_dict(source, table.format) for source in table.sources)
        names = [source.name for source in sources]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"two sources are named '{min(twice)}'")
        if not is_finite_number(sum(source.weight for source in sources)):
            raise UserError("the sum of the sources' weights is not finite: lower them")
        return cls(table.format, sources)


def load_mixture(path: Path | str) -> MixtureConfig:
    """Read a mixture file (TOML); `UserError` names the file and what is wrong in it."""
    path = files.user_path(path)
    values = files.read_toml(path)
    try:
        return MixtureConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
