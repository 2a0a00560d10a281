"""A streamed dataset of the hub, shuffled in blocks; its position can be kept and taken up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np

from mobilemoe_mlx import files
from mobilemoe_mlx.data.absent_keys import without_absent_keys
from mobilemoe_mlx.data.json_lines import BadRecord
from mobilemoe_mlx.data.records import Record, read_record
from mobilemoe_mlx.data.source_config import SourceConfig
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError

datasets.disable_progress_bars()  # the bar to watch is the training's


class StreamRows:
    """Rows of a streamed dataset, shuffled in consecutive blocks.

    The state is the dataset's own position at the start of the block, and the offset in the block:
    resuming reads the block again. (The shuffle buffer of `datasets` is not part of its state.)
    """

    def __init__(self, config: SourceConfig, seed: list[int], shuffle_block: int) -> None:
        self._config = config
        self._dataset = load_stream(config)
        self._seed = seed
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

    def next_record(self) -> Record | Reason:
        """The next record, or why it has no content; raises BadRecord."""
        return read_record(without_absent_keys(self._next_row()), self._config, self._place)

    def leave_out(self, reason: Reason) -> None:
        """A stream keeps no account of its records."""

    def _place(self) -> str:
        return f"a record of {self._config.path}"

    def _next_row(self) -> Mapping[str, Any]:
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
        """Position of the next row, JSON-serialisable."""
        return {
            "epoch": self.epoch,
            "block": self._block,
            "offset": self._offset,
            "block_size": self._block_size,
            "block_start": self._block_start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        # A dataset keeps the state it was given for as long as it lives: begin with a fresh one.
        self._dataset = load_stream(self._config)
        self.epoch = state["epoch"]
        self._block, self._offset = state["block"], state["offset"]
        self._block_size = state["block_size"]
        self._open_at(state["block_start"])


def stream_records(config: SourceConfig) -> Iterator[Record | Reason | BadRecord]:
    """One pass over a dataset in the order it is stored."""
    rows = iter(load_stream(config))
    place = f"a record of {config.path}"
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # as in StreamRows
            raise _unreadable(config, error) from error
        if row is None:
            return
        try:
            yield read_record(without_absent_keys(row), config, lambda: place)
        except BadRecord as error:
            yield error


def load_stream(config: SourceConfig) -> datasets.IterableDataset:
    """Open the source's dataset; raises UserError saying what to check."""
    path = config.path or ""
    try:
        return datasets.load_dataset(
            str(files.user_path(path)) if path.startswith("~") else path,
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
    return UserError(
        f"source '{config.name}' cannot be read: {reason}\n"
        f"Check the id, subset and split of {config.path} and the network. If it is gated, accept "
        f"its terms at https://huggingface.co/datasets/{config.path} and log in (`hf auth login`)."
    )
