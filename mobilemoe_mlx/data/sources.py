"""One data source of a mixture: local files or a hub dataset, as an endless resumable stream."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import datasets
import numpy as np

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.data.chat import ROLES
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.tables import Positive, Text

Format = Literal["text", "chat"]
Messages = list[dict[str, str]]
Record = str | Messages

SHUFFLE_BLOCK = 4096
"""Records of a streamed dataset that are shuffled together. Our choice: about 20 MB of web text."""

_SUFFIXES = {".jsonl", ".parquet", ".txt"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class SourceConfig:
    """One `[[sources]]` table of a mixture file; docs/data.md describes the keys.

    Exactly one of `path` (hub dataset id) and `files` (local paths or globs) is set. A text source
    has a text in `field`. A chat source has either messages in `field`, or one turn in
    `prompt_field` and `response_field`, or ShareGPT turns in `conversations_field`.
    """

    name: Text
    weight: Positive
    format: Format
    path: Text | None = None
    subset: Text | None = None
    data_dir: Text | None = None
    split: Text = "train"
    revision: Text | None = None
    files: tuple[Text, ...] = ()
    field: Text | None = None
    prompt_field: Text | None = None
    response_field: Text | None = None
    conversations_field: Text | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], format: Format) -> SourceConfig:
        """Check one source table; `UserError` names the source and the offending key."""
        if not isinstance(values, Mapping):
            raise UserError(f"a source must be a [[sources]] table, not {values!r}")
        name = values.get("name")
        where = f"source '{name}'" if name and isinstance(name, str) else "a source"
        try:
            config = tables.read(cls, dict(values), format=format)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if bool(config.files) == ("path" in values):
            raise UserError(f"{where}: give either path (a hub dataset) or files (local files)")
        if config.files and (hub := values.keys() & {"subset", "data_dir", "split", "revision"}):
            raise UserError(f"{where}: {', '.join(sorted(hub))} belong to path, not to files")
        turn = values.keys() & {"prompt_field", "response_field"}
        if len(turn) == 1:
            raise UserError(f"{where}: prompt_field and response_field go together")
        forms = [form for form in ("field", "conversations_field") if form in values]
        if len(forms) + bool(turn) > 1:
            raise UserError(
                f"{where}: give one of field, conversations_field, or prompt_field with "
                "response_field"
            )
        if format == "text" and (turn or "conversations_field" in values):
            raise UserError(f"{where}: a text source has only field; the others are for chat")
        if forms or turn:
            return config
        return replace(config, field="text" if format == "text" else "messages")


class Source:
    """Endless stream of one source's records: `str` (text) or a list of messages (chat).

    Every epoch is reshuffled, deterministically from `seed`, the source's name and the epoch: local
    files by a permutation of all records; hub datasets by shuffling their shards and, within them,
    consecutive blocks of `shuffle_block` records. Records without usable content (an empty text, a
    conversation without an answer or with a role the chat format lacks) are skipped and counted.
    `state_dict` is JSON-serialisable; after `load_state_dict` the same records follow as without
    the interruption.
    """

    def __init__(
        self,
        config: SourceConfig,
        base_folder: Path | str | None,
        seed: int,
        shuffle_block: int = SHUFFLE_BLOCK,
    ) -> None:
        self.config = config
        self.skipped = 0
        self._rows = _open(config, base_folder, seed, shuffle_block)

    @property
    def epoch(self) -> int:
        """Complete passes over the source so far."""
        return self._rows.epoch

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        start = self.epoch
        while True:
            record = _record(self._rows.next_row(), self.config)
            if record is not None:
                return record
            self.skipped += 1
            if self.epoch > start + 1:
                raise UserError(
                    f"source '{self.config.name}' has no usable record: every "
                    f"{_field_names(self.config)} is empty or of the wrong type"
                )

    def state_dict(self) -> dict[str, Any]:
        """Position of the next record, JSON-serialisable."""
        return {"skipped": self.skipped, "rows": self._rows.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; `UserError` if the data is not the same."""
        self.skipped = state["skipped"]
        self._rows.load_state_dict(state["rows"])


def read_records(config: SourceConfig, base_folder: Path | str | None) -> Iterator[Record]:
    """One pass over a source in the order it is stored, without shuffling."""
    rows = _load_files(config, base_folder) if config.files else _load_stream(config)
    for row in rows:
        record = _record(row, config)
        if record is not None:
            yield record


class _Rows(Protocol):
    epoch: int

    def next_row(self) -> Mapping[str, Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def _open(
    config: SourceConfig, base_folder: Path | str | None, seed: int, shuffle_block: int
) -> _Rows:
    if config.files:
        return _FileRows(config, base_folder, seed)
    return _StreamRows(config, seed, shuffle_block)


class _FileRows:
    """Rows of local files in a permutation of their own for every epoch."""

    def __init__(self, config: SourceConfig, base_folder: Path | str | None, seed: int) -> None:
        self._name = config.name
        self._rows = _load_files(config, base_folder)
        self._seed = _source_seed(config, seed)
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._position = 0
        self._order = np.random.default_rng([*self._seed, epoch]).permutation(len(self._rows))

    def next_row(self) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self._rows[int(self._order[self._position])]
        self._position += 1
        if self._position == len(self._rows):
            self._start_epoch(self.epoch + 1)
        return row

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self._position, "count": len(self._rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["count"] != len(self._rows):
            raise UserError(
                f"source '{self._name}' had {state['count']} records when the checkpoint was "
                f"written and has {len(self._rows)} now: restore its files, or start a new run"
            )
        self._start_epoch(state["epoch"])
        self._position = state["position"]


class _StreamRows:
    """Rows of a streamed dataset, shuffled in consecutive blocks.

    The state is the dataset's own position at the start of the block, and the offset in the block:
    resuming reads the block again. (The shuffle buffer of `datasets` is not part of its state.)
    """

    def __init__(self, config: SourceConfig, seed: int, shuffle_block: int) -> None:
        self._config = config
        self._dataset = _load_stream(config)
        self._seed = _source_seed(config, seed)
        self._block_size = shuffle_block
        self._start_epoch(0)

    def _start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._block = self._offset = 0
        self._open_at(None)

    def _open_at(self, block_start: dict[str, Any] | None) -> None:
        # `datasets` shuffles the order of the shards by the epoch; 0 would mean unshuffled.
        order_seed = np.random.default_rng([*self._seed, self.epoch]).integers(1, 2**31)
        self._dataset.set_epoch(int(order_seed))
        if block_start is not None:
            self._dataset.load_state_dict(block_start)
        self._block_start = block_start
        self._iterator = iter(self._dataset)
        self._content: list[Mapping[str, Any]] = []

    def _fill_block(self) -> None:
        try:
            for row in self._iterator:
                self._content.append(row)
                if len(self._content) == self._block_size:
                    break
        except Exception as error:  # whatever the network, a decompressor or a parser raises
            raise _unreadable(self._config, error) from error
        if self._content and self._offset >= len(self._content):
            raise UserError(
                f"source '{self._config.name}' has fewer records than when the checkpoint was "
                "written: pin its revision, or start a new run"
            )
        self._block_end = self._dataset.state_dict()
        self._order = np.random.default_rng([*self._seed, self.epoch, self._block]).permutation(
            len(self._content)
        )

    def next_row(self) -> Mapping[str, Any]:
        while not self._content:
            self._fill_block()
            if self._content:
                break
            if self._block == 0:
                raise UserError(f"source '{self._config.name}' is empty")
            self._start_epoch(self.epoch + 1)
        row = self._content[int(self._order[self._offset])]
        self._offset += 1
        if self._offset == len(self._content):
            self._block += 1
            self._offset = 0
            self._block_start = self._block_end
            self._content = []
        return row

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "block": self._block,
            "offset": self._offset,
            "block_size": self._block_size,
            "block_start": self._block_start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # A dataset keeps the state it was given for as long as it lives: begin with a fresh one.
        self._dataset = _load_stream(self._config)
        self.epoch = state["epoch"]
        self._block, self._offset = state["block"], state["offset"]
        self._block_size = state["block_size"]
        self._open_at(state["block_start"])


def _source_seed(config: SourceConfig, seed: int) -> list[int]:
    return [seed, zlib.crc32(config.name.encode())]


def _load_files(config: SourceConfig, base_folder: Path | str | None) -> datasets.Dataset:
    paths = _find_files(config, base_folder)
    suffixes = {path.suffix for path in paths}
    if len(suffixes) > 1 or not suffixes <= _SUFFIXES:
        raise UserError(
            f"source '{config.name}': files must all be .jsonl, all .parquet or all .txt, "
            f"not {', '.join(sorted(suffix or 'without suffix' for suffix in suffixes))}"
        )
    names = [str(path) for path in paths]
    empty = UserError(f"source '{config.name}' is empty: {', '.join(names)}")
    try:
        # Not load_dataset, which reports every use of its file readers to the hub.
        match suffixes.pop():
            case ".jsonl":
                rows = datasets.Dataset.from_json(names)
            case ".parquet":
                rows = datasets.Dataset.from_parquet(names)
            case _:
                rows = datasets.Dataset.from_text(names, sample_by="document")
    except StopIteration:  # from_json of files without a byte
        raise empty from None
    except Exception as error:  # a parser's own error, or a full disk under the datasets cache
        raise _unreadable(config, error) from error
    if len(rows) == 0:
        raise empty
    return rows


def _find_files(config: SourceConfig, base_folder: Path | str | None) -> list[Path]:
    paths: list[Path] = []
    for pattern in config.files:
        if base_folder is None and not files.user_path(pattern).is_absolute():
            raise UserError(
                f"source '{config.name}' names local files ({pattern}) but no data folder is "
                "given: set data.folder in the recipe"
            )
        folder = files.user_path(base_folder or "")
        found = files.find(folder, pattern)
        if not found:
            raise UserError(f"source '{config.name}': no file {folder / pattern}")
        paths += found
    return paths


def _load_stream(config: SourceConfig) -> datasets.IterableDataset:
    try:
        return datasets.load_dataset(
            config.path,
            config.subset,
            data_dir=config.data_dir,
            split=config.split,
            revision=config.revision,
            streaming=True,
        )
    except Exception as error:  # hub, network, file system and builder raise unrelated types
        raise _unreadable(config, error) from error


def _unreadable(config: SourceConfig, error: Exception) -> UserError:
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
        reason = str(error.__cause__)  # its own message says only that there was an error
    else:
        reason = str(error) or type(error).__name__
    message = f"source '{config.name}' cannot be read: {reason}"
    if config.path is not None:
        message += (
            f"\nCheck the id, subset and split of {config.path} and the network. If it is gated, "
            f"accept its terms at https://huggingface.co/datasets/{config.path} and log in "
            "(`hf auth login`)."
        )
    return UserError(message)


def _field_names(config: SourceConfig) -> str:
    if config.prompt_field and config.response_field:
        return f"'{config.prompt_field}' or '{config.response_field}'"
    return f"'{config.field or config.conversations_field}'"


def _record(row: Mapping[str, Any], config: SourceConfig) -> Record | None:
    """The row's text or conversation, None if it has no usable content."""
    if config.prompt_field is not None and config.response_field is not None:
        prompt = _value(row, config.prompt_field, config)
        response = _value(row, config.response_field, config)
        if not _is_text(prompt) or not _is_text(response):
            return None
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    if config.conversations_field is not None:
        return _conversation(_value(row, config.conversations_field, config), "from", "value")
    assert config.field is not None
    value = _value(row, config.field, config)
    if config.format == "text":
        return value if _is_text(value) else None
    return _conversation(value, "role", "content")


def _value(row: Mapping[str, Any], field: str, config: SourceConfig) -> Any:
    if field not in row:
        raise UserError(
            f"source '{config.name}' has no field '{field}'{did_you_mean(field, row)}; "
            f"its fields are {', '.join(row)}"
        )
    return row[field]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _conversation(turns: Any, role_key: str, content_key: str) -> Messages | None:
    if not isinstance(turns, list):
        return None
    messages: Messages = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            return None
        role, content = turn.get(role_key), turn.get(content_key)
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        if role_key == "from":
            role = _SHAREGPT_ROLES.get(role, role)
        if role not in ROLES:
            return None
        messages.append({"role": role, "content": content})
    answered = any(m["role"] == "assistant" and _is_text(m["content"]) for m in messages)
    return messages if answered else None
