"""Read all of a mixture's local data before it is needed: counts, digests, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilemoe_mlx.data.json_lines import BadRecord
from mobilemoe_mlx.data.local_files import find_files, identity, open_files
from mobilemoe_mlx.data.mixture import Encode, fit
from mobilemoe_mlx.data.mixture_config import MixtureConfig
from mobilemoe_mlx.data.records import Record, record_digest
from mobilemoe_mlx.data.source_config import OnBadRecord, SourceConfig
from mobilemoe_mlx.data.sources import no_usable_record, read_records, settle
from mobilemoe_mlx.data.statistics import Reason, SourceStatistics
from mobilemoe_mlx.errors import UserError


@dataclass(frozen=True)
class CheckedSource:
    """One pass over a source's local files; of a hub dataset only the name is known.

    `statistics` counts a single epoch; its tokens and cuts are complete only if all records were
    encoded. `digests` maps each file to the SHA-256 of its content. `first_bad` tells the place of
    the first bad record and what is wrong with it.
    """

    name: str
    share: float
    dataset: str | None = None
    bytes: int = 0
    records: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    statistics: SourceStatistics = field(default_factory=SourceStatistics)
    first_bad: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "name": self.name,
            "share": self.share,
            "dataset": self.dataset,
            "files": self.digests,
            "bytes": self.bytes,
            "records": self.records,
            "statistics": self.statistics.to_dict(),
            "first_bad": self.first_bad,
        }


@dataclass(frozen=True)
class CheckedMixture:
    """A mixture's sources, and `notices`: sentences about files read once or left out."""

    format: str
    sources: tuple[CheckedSource, ...]
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "format": self.format,
            "sources": [source.to_dict() for source in self.sources],
            "notices": list(self.notices),
        }


def check_mixture(
    config: MixtureConfig,
    base_folder: Path | str | None,
    encode: Encode | None = None,
    longest: int | None = None,
    *,
    encode_all: bool = False,
    on_bad_record: OnBadRecord = "error",
    heldout: Iterable[Path] = (),
    heldout_records: Iterable[Record] = (),
) -> CheckedMixture:
    """Read every local record of a mixture once; hub datasets are not touched.

    Datasets in folders are read only where there are `heldout_records`.

    With `encode`, records are encoded and cut to `longest` tokens until one has a target (or all,
    with `encode_all`). `heldout` files are left out as in training; records that are also among
    `heldout_records` are told. Raises UserError for the first bad record (unless `on_bad_record` is
    "skip"), for a source without a usable record, and for a file that two sources read.
    """
    heldout = tuple(heldout)
    held = {record_digest(record) for record in heldout_records}
    total = sum(source.weight for source in config.sources)
    notices: list[str] = []
    checked: list[CheckedSource] = []
    owners: dict[tuple[int, int], SourceConfig] = {}
    for source in config.sources:
        if not source.files:
            checked.append(CheckedSource(source.name, source.weight / total, dataset=source.path))
            if held and source.dataset_folder is not None:
                records_there = [
                    record
                    for record in read_records(source, None, on_bad_record=on_bad_record)
                    if not isinstance(record, Reason)
                ]
                again = sum(record_digest(record) in held for record in records_there)
                notices += _about_repeated(source, again, len(records_there))
            continue
        found = find_files(source, base_folder, heldout)
        notices += found.notices
        _check_owners(source, found.paths, owners)
        records = open_files(source, found.paths)
        statistics = SourceStatistics()
        first_bad: str | None = None
        usable = repeated = 0
        for item in records.scan():
            if isinstance(item, BadRecord):
                first_bad = first_bad or str(item)
            record = settle(item, source, on_bad_record)
            if isinstance(record, Reason):
                statistics.skipped[record] += 1
                continue
            repeated += bool(held) and record_digest(record) in held
            usable += 1
            if encode is not None and (encode_all or not statistics.documents):
                fitted = fit(encode(record), longest, statistics)
                if isinstance(fitted, Reason):
                    statistics.skipped[fitted] += 1
        if not (statistics.documents if encode is not None else usable):
            raise UserError(no_usable_record(source, statistics.skipped))
        notices += _about_repeated(source, repeated, len(records))
        checked.append(
            CheckedSource(
                name=source.name,
                share=source.weight / total,
                bytes=sum(path.stat().st_size for path in found.paths),
                records=len(records),
                digests={str(file.path): file.sha256 for file in records.files},
                statistics=statistics,
                first_bad=first_bad,
            )
        )
    return CheckedMixture(config.format, tuple(checked), tuple(notices))


def _about_repeated(source: SourceConfig, repeated: int, records: int) -> list[str]:
    if not repeated:
        return []
    return [
        f"source '{source.name}': {repeated:,} of its {records:,} records are held out too, so the "
        "held-out loss says less than it seems to."
    ]


def _check_owners(
    source: SourceConfig, paths: Iterable[Path], owners: dict[tuple[int, int], SourceConfig]
) -> None:
    for path in paths:
        owner = owners.setdefault(identity(path), source)
        if owner is not source and owner.fields == source.fields:
            raise UserError(
                f"source '{source.name}' reads {path}, and so does source '{owner.name}': name it "
                "in one of them; weights say how often each is read."
            )
