"""One data source of a mixture: local files or a hub dataset, as an endless resumable stream."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mobilemoe_mlx.data.json_lines import BadRecord
from mobilemoe_mlx.data.local_files import LocalRecords, find_files, open_files
from mobilemoe_mlx.data.records import Record
from mobilemoe_mlx.data.source_config import OnBadRecord, SourceConfig
from mobilemoe_mlx.data.statistics import Reason, SourceStatistics, reasons
from mobilemoe_mlx.errors import UserError

SHUFFLE_BLOCK = 4096
"""Records of a streamed dataset that are shuffled together. Our choice: about 20 MB of web text."""


class Source:
    """Endless stream of one source's records: `str` (text) or a list of messages (chat).

    Every epoch is reshuffled, deterministically from `seed`, the source's name and the epoch: local
    files by a permutation of all records; hub datasets by shuffling their shards and, within them,
    consecutive blocks of `shuffle_block` records. Records without usable content (an empty text, a
    conversation without an answer, ...) are skipped and counted by reason; bad ones too with
    `on_bad_record` "skip", else they raise UserError. `heldout` files that a pattern catches are
    left out. `state_dict` is JSON-serialisable; after `load_state_dict` the same records follow as
    without the interruption. `statistics` counts what was skipped and the epochs; what was given is
    counted by the mixture, which knows the tokens.
    """

    def __init__(
        self,
        config: SourceConfig,
        base_folder: Path | str | None,
        seed: int,
        shuffle_block: int = SHUFFLE_BLOCK,
        *,
        on_bad_record: OnBadRecord = "error",
        heldout: Iterable[Path] = (),
        records: LocalRecords | None = None,
    ) -> None:
        """`records`: those to give, where they have been opened already."""
        self.config = config
        self.statistics = SourceStatistics()
        self._on_bad_record = on_bad_record
        self._rows = _open(config, base_folder, seed, shuffle_block, heldout, records)

    @property
    def epoch(self) -> int:
        """Complete passes over the source so far."""
        return self._rows.epoch

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        start = self.epoch
        while True:
            try:
                record: Record | Reason | BadRecord = self._rows.next_record()
            except BadRecord as error:
                record = error
            self.statistics.epochs = self.epoch
            record = settle(record, self.config, self._on_bad_record)
            if not isinstance(record, Reason):
                return record
            self.leave_out(record)
            if self.epoch > start + 1:
                raise UserError(no_usable_record(self.config, self.statistics.skipped))

    def leave_out(self, reason: Reason) -> None:
        """Count the last record as skipped; of a local file it is not read again."""
        self.statistics.skipped[reason] += 1
        self._rows.leave_out(reason)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next record, JSON-serialisable."""
        return {"statistics": self.statistics.to_dict(), "rows": self._rows.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; `UserError` if the data is not the same."""
        self.statistics = SourceStatistics.from_dict(state["statistics"])
        self._rows.load_state_dict(state["rows"])


class _Rows(Protocol):
    epoch: int

    def next_record(self) -> Record | Reason: ...

    def leave_out(self, reason: Reason) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _FileRows:
    """Rows of local files in a permutation of their own for every epoch."""

    def __init__(self, config: SourceConfig, records: LocalRecords, seed: list[int]) -> None:
        self._name = config.name
        self._records = records
        self._seed = seed
        self._last = 0  # the record given last
        self._left_out: dict[int, Reason] = {}  # known to have nothing to learn from
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._position = 0
        self._order = np.random.default_rng([*self._seed, epoch]).permutation(len(self._records))

    def next_record(self) -> Record | Reason:
        self._last = int(self._order[self._position])
        self._position += 1
        if self._position == len(self._records):
            self._start_epoch(self.epoch + 1)
        known = self._left_out.get(self._last)
        return known if known is not None else self._records.read(self._last)

    def leave_out(self, reason: Reason) -> None:
        self._left_out[self._last] = reason

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "position": self._position,
            "count": len(self._records),
            "files": [[file.path.name, file.sha256] for file in self._records.files],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check_unchanged(state["count"], state["files"])
        self._start_epoch(state["epoch"])
        self._position = state["position"]

    def _check_unchanged(self, count: int, before: list[list[str]]) -> None:
        now = self._records.files
        advice = "restore its files, or start a new run"
        if count != len(self._records) or len(before) != len(now):
            raise UserError(
                f"source '{self._name}' had {count} records in {len(before)} files when the "
                f"checkpoint was written and has {len(self._records)} in {len(now)} now: {advice}"
            )
        for (name, sha256), file in zip(before, now, strict=True):
            if sha256 != file.sha256:
                raise UserError(
                    f"source '{self._name}': {file.path} is not the {name} that the checkpoint "
                    f"was trained on, its content has changed: {advice}"
                )


def read_records(
    config: SourceConfig,
    base_folder: Path | str | None,
    *,
    on_bad_record: OnBadRecord = "error",
    heldout: Iterable[Path] = (),
) -> Iterator[Record | Reason]:
    """One pass over a source in the order it is stored; in place of a skipped record, the reason.

    `heldout` files that a pattern catches are left out.
    Raises UserError naming file and line of a bad record, unless `on_bad_record` is "skip".
    """
    if config.files:
        paths = find_files(config, base_folder, heldout).paths
        records = open_files(config, paths).scan()
    else:
        from mobilemoe_mlx.data.hub_stream import stream_records  # imports `datasets`, slowly

        records = stream_records(config)
    for record in records:
        yield settle(record, config, on_bad_record)


def settle(
    record: Record | Reason | BadRecord, config: SourceConfig, on_bad_record: OnBadRecord
) -> Record | Reason:
    """A record as it is; of a bad one the reason to skip it, or UserError."""
    if not isinstance(record, BadRecord):
        return record
    if on_bad_record == "skip":
        return Reason.BAD_RECORD
    raise UserError(
        f"source '{config.name}': {str(record).rstrip('.')}. Correct it, or leave such records out "
        "with `--set data.on_bad_record=skip`."
    )


def no_usable_record(config: SourceConfig, skipped: Mapping[str, int]) -> str:
    """The sentence about a source of which every record was skipped, with what to do."""
    advice = ""
    if Reason.BEYOND_CONTEXT in skipped:
        advice = " Choose a longer context (`--set data.context=N`), or shorter conversations."
    fields = " and ".join(f"'{name}'" for name in config.fields)
    return (
        f"source '{config.name}' has no usable record in {fields}; left out: "
        f"{reasons(skipped)}.{advice}"
    )


def _open(
    config: SourceConfig,
    base_folder: Path | str | None,
    seed: int,
    shuffle_block: int,
    heldout: Iterable[Path],
    records: LocalRecords | None,
) -> _Rows:
    seeds = [seed, zlib.crc32(config.name.encode())]
    if records is not None:
        return _FileRows(config, records, seeds)
    if config.files:
        paths = find_files(config, base_folder, heldout).paths
        return _FileRows(config, open_files(config, paths), seeds)
    from mobilemoe_mlx.data.hub_stream import StreamRows  # imports `datasets`, slowly

    return StreamRows(config, seeds, shuffle_block)
