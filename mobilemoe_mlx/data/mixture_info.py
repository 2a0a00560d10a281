"""What a mixture file mixes: the sources, their shares, and what their files here hold."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import text_table
from mobilemoe_mlx.data.json_lines import BadRecord
from mobilemoe_mlx.data.local_files import NoFile, find_files, records_of
from mobilemoe_mlx.data.mixture_config import load_mixture
from mobilemoe_mlx.data.source_config import SourceConfig
from mobilemoe_mlx.data.statistics import Reason, reasons


@dataclass(frozen=True)
class SourceInfo:
    """A source of a mixture."""

    name: str
    share: float  # of the tokens, from 0 to 1
    where: str  # the hub dataset, or the local files as the mixture names them
    fields: tuple[str, ...]  # of a record
    found: int | None  # local files beside the mixture file; None for a hub dataset
    bytes: int | None  # of those files
    records: int | None  # in those files
    left_out: dict[str, int]  # of those records, by reason (data.statistics)
    first_bad: str | None  # the first bad record's place, and what is wrong with it


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
        head = ["source", "share of tokens", "files here", "size", "records", "left out"]
        rows = [[*head, "read", "from"]]
        for source in self.sources:
            here = ["", "", "", ""]
            if source.found is not None:
                left_out = sum(source.left_out.values())
                here = [f"{source.found:,}", text_table.size(source.bytes or 0)]
                here += [f"{source.records:,}", f"{left_out:,}"]
            fields = ", ".join(source.fields)
            rows.append([source.name, f"{source.share:.1%}", *here, fields, source.where])
        lines = [f"{self.path.name}: {self.format}", "", text_table.columns(rows)]
        for source in self.sources:
            if source.left_out:
                lines += ["", f"{source.name}; left out: {reasons(source.left_out)}."]
            if source.first_bad is not None:
                lines.append(f"The first bad record: {source.first_bad}.")
        if any(source.found == 0 for source in self.sources):
            lines += ["", "Files that are not beside the mixture file: data.folder says where."]
        return "\n".join(lines)


def describe_mixture(path: Path) -> MixtureInfo:
    """Read a mixture file and its local files; raises UserError for what is wrong in the mixture.

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
        return SourceInfo(source.name, share, where, source.fields, None, None, None, {}, None)
    where = " ".join(source.files)
    try:
        paths = find_files(source, folder).paths
    except NoFile:
        return SourceInfo(source.name, share, where, source.fields, 0, 0, 0, {}, None)
    left_out: Counter[str] = Counter()
    first_bad: str | None = None
    records = 0
    for record in records_of(source, paths).scan():
        records += 1
        if isinstance(record, BadRecord):
            first_bad = first_bad or str(record).rstrip(".")
            left_out[Reason.BAD_RECORD] += 1
        elif isinstance(record, Reason):
            left_out[record] += 1
    return SourceInfo(
        name=source.name,
        share=share,
        where=where,
        fields=source.fields,
        found=len(paths),
        bytes=sum(path.stat().st_size for path in paths),
        records=records,
        left_out=dict(left_out.most_common()),
        first_bad=first_bad,
    )
