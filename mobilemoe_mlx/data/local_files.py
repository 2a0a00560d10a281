"""A source's local files: which they are, and their records by number."""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from mobilemoe_mlx import files
from mobilemoe_mlx.data.json_lines import BadRecord, JsonLines
from mobilemoe_mlx.data.records import Record, read_record
from mobilemoe_mlx.data.source_config import SourceConfig
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError

Identity = tuple[int, int]
"""Device and number of a file: the same for every link to it."""


@dataclass(frozen=True)
class FoundFiles:
    """A source's files in order, each once, and what was left out, in sentences."""

    paths: tuple[Path, ...]
    notices: tuple[str, ...]


class NoFile(UserError):
    """There is no file of a name that a source gives."""


class RecordFile(Protocol):
    """A file of rows, read by number; `sha256` is of its content, in hexadecimal digits."""

    path: Path
    sha256: str

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """The row's place for messages."""
        ...

    def read(self, index: int) -> Mapping[str, Any]:
        """The row `index`, counted from 0; raises BadRecord."""
        ...


class TextFile:
    """A file that is one document."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sha256 = files.sha256(path)

    def __len__(self) -> int:
        return 1

    def where(self, index: int) -> str:
        """The file's name."""
        return str(self.path)

    def read(self, index: int) -> dict[str, str]:
        """{"text": the whole file}; raises BadRecord."""
        try:
            return {"text": files.read_text(self.path)}
        except UserError as error:
            raise BadRecord(str(error)) from None


class LocalRecords:
    """The records of a source's files, numbered through; `chosen`: the numbers of some of them."""

    def __init__(
        self,
        config: SourceConfig,
        parts: Iterable[RecordFile],
        chosen: Sequence[int] | None = None,
    ) -> None:
        self.config = config
        self.files = tuple(parts)
        self._ends = list(accumulate(len(part) for part in self.files))
        self._chosen = range(self._ends[-1] if self._ends else 0) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, index: int) -> Record | Reason:
        """The record `index`, counted from 0, or why it has no content; raises BadRecord."""
        file, inside = self._place(index)
        return read_record(file.read(inside), self.config, lambda: file.where(inside))

    def where(self, index: int) -> str:
        """The record's place for messages."""
        file, inside = self._place(index)
        return file.where(inside)

    def number(self, index: int) -> int:
        """The record's number among all of the files."""
        return self._chosen[index]

    def only(self, chosen: Sequence[int]) -> LocalRecords:
        """The records of the numbers `chosen` among all of the files, in their order."""
        return LocalRecords(self.config, self.files, chosen)

    def _place(self, index: int) -> tuple[RecordFile, int]:
        index = self._chosen[index]
        number = bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)

    def scan(self) -> Iterator[Record | Reason | BadRecord]:
        """Every record in order; a bad one is given as its error."""
        for index in range(len(self)):
            try:
                yield self.read(index)
            except BadRecord as error:
                yield error


def find_files(
    config: SourceConfig, base_folder: Path | str | None, heldout: Iterable[Path] = ()
) -> FoundFiles:
    """The files that a source names, those of a pattern sorted; hidden ones are passed over.

    A file that is named twice, by overlapping patterns or by links, is read once. One of `heldout`
    is left out where a pattern caught it. Raises UserError for a name without a file, for a
    held-out file that is named outright, and where nothing is left.
    """
    where = f"source '{config.name}'"
    reserved = {identity(path) for path in heldout}
    seen: dict[Identity, Path] = {}
    excluded: dict[Identity, Path] = {}
    notices = []
    folder = files.user_path("." if base_folder is None else base_folder)
    for pattern in config.files:
        named = folder / files.user_path(pattern, folder)
        if base_folder is None and not named.is_absolute():
            raise UserError(
                f"{where} names local files ({pattern}) but no data folder is given: set "
                "data.folder in the recipe"
            )
        found = files.find(folder, pattern)
        if links := files.links_to_nothing(folder, pattern):
            raise UserError(
                f"{where}: {links[0]} is a link whose file is absent: remove it, or restore "
                "the file"
            )
        if not found:
            raise NoFile(f"{where}: {_nothing(named)}")
        for path in found:
            key = identity(path)
            if key in reserved and path == named:
                raise UserError(f"{where} trains on {path}, which is held out: name it once only")
            if key in reserved:
                excluded.setdefault(key, path)
            elif key in seen:
                same = "is named twice" if seen[key] == path else f"is {seen[key]} again"
                notices.append(f"{where}: {path} {same}; it is read once.")
            else:
                seen[key] = path
    notices += [
        f"{where}: {path} is held out, so it is not trained on." for path in excluded.values()
    ]
    if not seen:
        raise UserError(f"{where} has no file left: {notices[-1]}")
    return FoundFiles(tuple(seen.values()), tuple(dict.fromkeys(notices)))


def identity(path: Path) -> Identity:
    """What tells one file from another, whatever their names."""
    status = path.stat()
    return status.st_dev, status.st_ino


def open_files(config: SourceConfig, paths: Iterable[Path]) -> LocalRecords:
    """The records of a source's files; raises UserError where they cannot be read or are none."""
    records = records_of(config, paths)
    if len(records) == 0:
        names = ", ".join(str(file.path) for file in records.files)
        raise UserError(f"source '{config.name}' is empty: {names}")
    return records


def records_of(config: SourceConfig, paths: Iterable[Path]) -> LocalRecords:
    """The records of a source's files, even if there are none; raises UserError as `open_files`."""
    paths = list(paths)
    known = {".jsonl", ".parquet", ".txt"}
    if strange := sorted({path.suffix for path in paths if path.suffix.lower() not in known}):
        raise UserError(
            f"source '{config.name}': files must all be .jsonl, .parquet or .txt, not "
            f"{', '.join(suffix or 'without suffix' for suffix in strange)}"
        )
    try:
        return LocalRecords(config, [open_record_file(path, config.fields) for path in paths])
    except UserError as error:
        raise UserError(f"source '{config.name}' cannot be read: {error}") from None


def open_record_file(path: Path, fields: Sequence[str]) -> RecordFile:
    """The rows of a .jsonl, .txt or .parquet file; of the last, the columns `fields` are read."""
    match path.suffix.lower():
        case ".jsonl":
            return JsonLines(path)
        case ".txt":
            return TextFile(path)
    from mobilemoe_mlx.data.parquet import ParquetFile  # slow to import, for this one kind

    return ParquetFile(path, fields)


def _nothing(path: Path) -> str:
    """Why there is no file at `path`, in a few words; raises UserError where it cannot be seen."""
    if os.path.isdir(path):  # which takes names that are too long
        return f"{path} is a folder: name its files, as in {path.name}/*.jsonl"
    if os.path.lexists(path):
        return f"{path} is neither a file nor a folder"
    try:
        path.lstat()
    except PermissionError as error:
        raise UserError(f"Cannot look at {path}: {error.strerror}.") from None
    except OSError:  # it is not there
        pass
    twins = [n for n in _names(path.parent) if _unicode_form(n) == _unicode_form(path.name)]
    if twins:
        return (
            f"no file {path}; there is one whose name looks the same but has other characters "
            f"({twins[0]!a}, not {path.name!a}): name it by a pattern, as {path.name[:1]}*"
        )
    return f"no file {path}"


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _unicode_form(name: str) -> str:
    """The form in which names that look the same are the same."""
    return unicodedata.normalize("NFC", name)
