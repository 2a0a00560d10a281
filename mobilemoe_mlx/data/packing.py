"""Packing: encoded documents become fixed-size batches, the same for every number of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.data.mixture import Document, Encode, Mixture, encoded
from mobilemoe_mlx.data.mixture_config import MixtureConfig
from mobilemoe_mlx.data.source_config import OnBadRecord, SourceConfig
from mobilemoe_mlx.data.sources import no_usable_record, read_records
from mobilemoe_mlx.data.statistics import DataStatistics, SourceStatistics
from mobilemoe_mlx.errors import UserError

PADDING = -1
"""Document number of a padded position; its input and target are 0 and it is not in the loss."""


class Batch(NamedTuple):
    """Rows of packed documents; B rows, T positions.

    `targets[b, t]` follows `inputs[b, t]`. `documents` numbers the documents of a row 0, 1, 2, ...;
    padding has -1. `loss_mask` is 1 where the target counts: never across documents, never padding.
    """

    inputs: np.ndarray  # [B, T] int32
    targets: np.ndarray  # [B, T] int32
    loss_mask: np.ndarray  # [B, T] float32, 0 or 1
    documents: np.ndarray  # [B, T] int32


class PackedBatches:
    """Endless stream of batches from a mixture.

    With `split_documents` (text) documents are laid end to end and cut into rows: the token after a
    row's last is its last target and the next row's first input, so every token but the very first
    is a target exactly once. Without it (chat) a document is never split: it goes into the first
    row with room, a batch is complete when a document fits into no row, and the rest is padding; a
    document longer than `context` + 1 tokens is cut there, and skipped if no target is left. Every
    batch has a target.

    `batch_size` is global. Rank r of w gets the rows r·B/w to (r+1)·B/w; every rank reads the same
    stream, so that the states of all ranks are equal and the global batch does not depend on w.
    `state_dict` is JSON-serialisable, holds the documents not yet packed, and resuming is exact.
    """

    def __init__(
        self,
        mixture: Mixture,
        context: int,
        batch_size: int,
        *,
        split_documents: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise UserError(
                f"a batch of {batch_size} rows does not divide among {world_size} processes: "
                f"choose a multiple of {world_size}"
            )
        self._mixture = mixture
        self._documents = mixture if split_documents else mixture.cut_to(context + 1)
        self._packer = _Packer(context, batch_size, split_documents)
        rows = batch_size // world_size
        self._rows = slice(rank * rows, (rank + 1) * rows)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._packer.pack(self._documents)
        assert batch is not None, "a mixture does not end"
        return Batch(*(part[self._rows] for part in batch))

    def statistics(self) -> DataStatistics:
        """The counts so far, of the global batches."""
        return DataStatistics(**self._packer.counts, sources=self._mixture.statistics())

    def state_dict(self) -> dict[str, Any]:
        """The mixture's state and the documents read but not yet packed."""
        return {
            "mixture": self._mixture.state_dict(),
            "pending": [
                {"tokens": tokens.tolist(), "loss": loss.astype(int).tolist()}
                for tokens, loss in self._packer.pending
            ],
            "counts": dict(self._packer.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the batch that would have followed `state_dict`."""
        self._mixture.load_state_dict(state["mixture"])
        self._packer.pending = deque(
            _Piece.of(Document(piece["tokens"], piece["loss"])) for piece in state["pending"]
        )
        self._packer.counts = dict(state["counts"])


def heldout_batches(
    source: SourceConfig,
    base_folder: Path | str | None,
    encode: Encode,
    context: int,
    batch_size: int,
    max_tokens: int,
    *,
    on_bad_record: OnBadRecord = "error",
) -> tuple[list[Batch], SourceStatistics]:
    """The first `max_tokens` positions of a source, unshuffled, packed as in training.

    Whole batches: at least one and at most `max_tokens` // (`batch_size` · `context`); the last one
    of a short source is padded, if need be by whole rows. The counts are of what was read for them.
    Raises UserError where no record has a target within the context.
    """
    statistics = SourceStatistics()
    split = source.format == "text"
    records = read_records(source, base_folder, on_bad_record=on_bad_record)
    documents = encoded(records, encode, None if split else context + 1, statistics)
    found = packed(documents, context, batch_size, max_tokens, split_documents=split)
    if not found:
        raise UserError(f"held out: {no_usable_record(source, statistics.skipped)}")
    return found, statistics


def packed(
    documents: Iterator[Document],
    context: int,
    batch_size: int,
    max_tokens: int,
    *,
    split_documents: bool,
) -> list[Batch]:
    """The batches that `documents` fill in their order, as in `heldout_batches`; perhaps none."""
    packer = _Packer(context, batch_size, split_documents)
    batches = iter(lambda: packer.pack(documents), None)
    return list(islice(batches, max(1, max_tokens // (batch_size * context))))


def batches_per_pass(
    config: MixtureConfig,
    base_folder: Path | str | None,
    encode: Encode,
    context: int,
    batch_size: int,
    *,
    on_bad_record: OnBadRecord = "error",
    heldout: Iterable[Path] = (),
) -> float:
    """How many global batches one pass over all the local sources of a mixture fills.

    A batch that they fill in part counts in part. `heldout` files are left out as in training.
    """
    split = config.format == "text"
    heldout = tuple(heldout)
    documents = (
        document
        for source in config.sources
        for document in encoded(
            read_records(source, base_folder, on_bad_record=on_bad_record, heldout=heldout),
            encode,
            None if split else context + 1,
            SourceStatistics(),
        )
    )
    return batches_filled(documents, context, batch_size, split_documents=split)


def batches_filled(
    documents: Iterator[Document], context: int, batch_size: int, *, split_documents: bool
) -> float:
    """How many batches `documents` fill in their order; one that they fill in part counts so."""
    packer = _Packer(context, batch_size, split_documents)
    full = used = 0.0
    while (batch := packer.pack(documents)) is not None:
        full += used > 0
        used = float((batch.documents != PADDING).mean())
    return full + used


def document_attention_mask(documents: mx.array | np.ndarray) -> mx.array:
    """Causal attention within each document: bool `[B, 1, T, T]`, true where attention may look.

    `documents` is `[B, T]` as in `Batch`. Padded positions see the padding before them, so that no
    row of the mask is empty.
    """
    documents = mx.array(documents)
    positions = mx.arange(documents.shape[1])
    causal = positions[:, None] >= positions[None, :]  # [T, T]
    same = documents[:, :, None] == documents[:, None, :]  # [B, T, T]
    return (same & causal)[:, None]


class _Piece(NamedTuple):
    """A document, or what is left of one."""

    tokens: np.ndarray  # [n] int32
    loss: np.ndarray  # [n] bool

    @classmethod
    def of(cls, document: Document) -> _Piece:
        return cls(np.array(document.tokens, np.int32), np.array(document.loss, bool))

    def part(self, start: int, end: int | None = None) -> _Piece:
        return _Piece(self.tokens[start:end], self.loss[start:end])


class _Packer:
    """Builds global batches; `pending` holds what was read and did not fit."""

    def __init__(self, context: int, batch_size: int, split_documents: bool) -> None:
        self.context = context
        self.batch_size = batch_size
        self.split_documents = split_documents
        self.pending: deque[_Piece] = deque()
        self.counts = {"positions": 0, "padding": 0}

    def pack(self, documents: Iterator[Document]) -> Batch | None:
        """The next batch with a target, padded where `documents` ends; None where none is left."""
        while (batch := self._fill(documents)) is not None and not batch.loss_mask.any():
            pass
        if batch is not None:
            self.counts["positions"] += batch.documents.size
            self.counts["padding"] += int((batch.documents == PADDING).sum())
        return batch

    def _fill(self, documents: Iterator[Document]) -> Batch | None:
        shape = (self.batch_size, self.context)
        batch = Batch(
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.float32),
            np.full(shape, PADDING, np.int32),
        )
        if self.split_documents:
            for row in range(self.batch_size):
                self._fill_row(batch, row, documents)
        else:
            self._place_whole(batch, documents)
        return None if (batch.documents == PADDING).all() else batch

    def _next_piece(self, documents: Iterator[Document]) -> _Piece | None:
        if self.pending:
            return self.pending.popleft()
        document = next(documents, None)
        return None if document is None else _Piece.of(document)

    def _fill_row(self, batch: Batch, row: int, documents: Iterator[Document]) -> None:
        """Lay documents end to end into one row, and keep the remainder of the last one."""
        pieces: list[_Piece] = []
        room = self.context + 1  # the inputs and the last target
        while room and (piece := self._next_piece(documents)):
            pieces.append(piece.part(0, room))
            room -= len(pieces[-1].tokens)
            if not room:  # the last target is the next row's first input
                self.pending.appendleft(piece.part(len(pieces[-1].tokens) - 1))
        if not pieces:
            return
        tokens = np.concatenate([piece.tokens for piece in pieces])
        loss = np.concatenate([piece.loss for piece in pieces])
        lengths = [len(piece.tokens) for piece in pieces]
        numbers = np.repeat(np.arange(len(pieces)), lengths)
        n = len(tokens) - 1
        batch.inputs[row, :n] = tokens[:-1]
        batch.targets[row, :n] = tokens[1:]
        batch.loss_mask[row, :n] = loss[1:] & (numbers[1:] == numbers[:-1])
        batch.documents[row, :n] = numbers[:-1]

    def _place_whole(self, batch: Batch, documents: Iterator[Document]) -> None:
        """Put documents, first fit, into the rows until one fits nowhere."""
        used = np.zeros(self.batch_size, int)
        number = np.zeros(self.batch_size, int)
        while piece := self._next_piece(documents):
            n = len(piece.tokens) - 1  # the last token is a target only
            rows_with_room = np.flatnonzero(self.context - used >= n)
            if not len(rows_with_room):
                self.pending.appendleft(piece)
                return
            row = int(rows_with_room[0])
            place = slice(used[row], used[row] + n)
            batch.inputs[row, place] = piece.tokens[:-1]
            batch.targets[row, place] = piece.tokens[1:]
            batch.loss_mask[row, place] = piece.loss[1:]
            batch.documents[row, place] = number[row]
            used[row] += n
            number[row] += 1
