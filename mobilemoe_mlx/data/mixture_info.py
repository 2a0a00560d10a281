"""What a mixture file mixes: the sources, their shares, and which of their files are here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import text_table
from mobilemoe_mlx.data.local_files import find_files
from mobilemoe_mlx.data.mixture import load_mixture
from mobilemoe_mlx.data.source_config import SourceConfig
from mobilemoe_mlx.errors import UserError


@dataclass(frozen=True)
class SourceInfo:
    """A source of a mixture."""

    name: str
    share: float  # of the tokens, from 0 to 1
    where: str  # the hub dataset, or the local files as the mixture names them
    fields: tuple[str, ...]  # of a record
    found: int | None  # local files beside the mixture file; None for a hub dataset
    bytes: int | None  # of those files


@dataclass(frozen=True)
class MixtureInfo:
    """A mixture file."""

    path: Path
    format: str  # "text" or "chat"
    sources: list[SourceInfo]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def text(self) -> str:
        """For people: a line for each source."""
        rows = [["source", "share of tokens", "files here", "size", "read", "from"]]
        for source in self.sources:
            here = ["", ""]
            if source.found is not None:
                here = [f"{source.found:,}", text_table.size(source.bytes or 0)]
            fields = ", ".join(source.fields)
            rows.append([source.name, f"{source.share:.1%}", *here, fields, source.where])
        lines = [f"{self.path.name}: {self.format}", "", text_table.columns(rows)]
        if any(source.found == 0 for source in self.sources):
            lines += ["", "Files that are not beside the mixture file: data.folder says where."]
        return "\n".join(lines)


def describe_mixture(path: Path) -> MixtureInfo:
    """Read a mixture file and look for its local files; raises UserError for what is wrong in it.

    Files are looked for beside the mixture file, as without the recipe's data.folder.
    """
    config = load_mixture(path)
    total = sum(source.weight for source in config.sources)
    sources = [_describe(source, source.weight / total, path.parent) for source in config.sources]
    return MixtureInfo(path, config.format, sources)


def _describe(source: SourceConfig, share: float, folder: Path) -> SourceInfo:
    if not source.files:
        parts = (source.path, source.subset, source.data_dir, source.split, source.revision)
        where = " ".join(part for part in parts if part)
        return SourceInfo(source.name, share, where, source.fields, None, None)
    try:
        paths = find_files(source, folder).paths
    except UserError:  # none is here
        paths = ()
    size = sum(path.stat().st_size for path in paths)
    return SourceInfo(source.name, share, " ".join(source.files), source.fields, len(paths), size)
