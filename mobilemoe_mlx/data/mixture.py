"""A weighted mixture of sources: which one gives the next document, and where each one stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mobilemoe_mlx.chat_format import BEGIN_OF_TEXT, encode_text
from mobilemoe_mlx.data.chat import encode_conversation
from mobilemoe_mlx.data.local_files import LocalRecords
from mobilemoe_mlx.data.mixture_config import MixtureConfig
from mobilemoe_mlx.data.records import Record
from mobilemoe_mlx.data.source_config import Format, OnBadRecord
from mobilemoe_mlx.data.sources import Source, no_usable_record
from mobilemoe_mlx.data.statistics import Reason, SourceStatistics
from mobilemoe_mlx.end_tokens import END_OF_TEXT
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer import AnyTokenizer


class Document(NamedTuple):
    """One encoded text or conversation: token ids, and which of them are targets of the loss."""

    tokens: list[int]
    loss: list[bool]


Encode = Callable[[Any], tuple[list[int], list[bool]] | Reason]
"""Turns one record (`str` for text, messages for chat) into tokens and loss flags; or says why it
cannot."""


def text_encoder(encode_text: Callable[[str], list[int]], bos: int, eos: int) -> Encode:
    """Encode a text as `bos` + text + `eos`; every token but `bos` is a target."""

    def encode(text: str) -> tuple[list[int], list[bool]]:
        tokens = [bos, *encode_text(text), eos]
        return tokens, [False] + [True] * (len(tokens) - 1)

    return encode


def document_encoder(tokenizer: AnyTokenizer, format: Format) -> Encode:
    """The encoder of a mixture's records for a tokenizer with the published control tokens.

    Text goes through `text_encoder` with <|begin_of_text|> and <|end_of_text|>; a conversation
    through `encode_conversation`. Raises `UserError` where the tokenizer lacks a control token.
    """
    if format == "chat":
        return partial(encode_conversation, tokenizer)
    vocabulary = tokenizer.get_vocab()
    for name in (BEGIN_OF_TEXT, END_OF_TEXT):
        if name not in vocabulary:
            raise UserError(
                f"the tokenizer lacks {name}: use the one of a MobileMoE checkpoint, or one of "
                "`mobilemoe tokenizer train`"
            )
    encode = partial(encode_text, tokenizer)
    return text_encoder(encode, vocabulary[BEGIN_OF_TEXT], vocabulary[END_OF_TEXT])


class Mixture:
    """Endless stream of encoded documents from weighted sources.

    A weight is a source's share of the *tokens*. The next document comes from the source whose
    tokens lag furthest behind its share (the first one in a tie), so the order is deterministic and
    the shares are exact up to one document. Documents without a target are skipped and counted.
    `on_bad_record` and `heldout` are as in `Source`. `state_dict` is JSON-serialisable and resuming
    exact.
    """

    def __init__(
        self,
        config: MixtureConfig,
        base_folder: Path | str | None,
        encode: Encode,
        seed: int,
        *,
        on_bad_record: OnBadRecord = "error",
        heldout: Iterable[Path] = (),
        records: Mapping[str, LocalRecords] | None = None,
    ) -> None:
        """`records`: those of a source, by its name, where they have been opened already."""
        self.config = config
        self._encode = encode
        heldout = tuple(heldout)
        self._sources = [
            Source(
                source,
                base_folder,
                seed,
                on_bad_record=on_bad_record,
                heldout=heldout,
                records=(records or {}).get(source.name),
            )
            for source in config.sources
        ]
        total = sum(source.weight for source in config.sources)
        self._shares = [source.weight / total for source in config.sources]

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        return self._next(None)

    def cut_to(self, longest: int) -> Iterator[Document]:
        """The same stream with documents cut to `longest` tokens, and the cuts counted."""
        while True:
            yield self._next(longest)

    def _next(self, longest: int | None) -> Document:
        tokens = [source.statistics.tokens for source in self._sources]
        total = sum(tokens)
        behind = [share * total - n for share, n in zip(self._shares, tokens, strict=True)]
        source = self._sources[behind.index(max(behind))]
        start = source.epoch
        while True:
            document = fit(self._encode(next(source)), longest, source.statistics)
            if not isinstance(document, Reason):
                return document
            source.leave_out(document)
            if source.epoch > start + 1:
                raise UserError(no_usable_record(source.config, source.statistics.skipped))

    def statistics(self) -> dict[str, SourceStatistics]:
        """The counts so far, by source name."""
        return {source.config.name: source.statistics.copy() for source in self._sources}

    def state_dict(self) -> dict[str, Any]:
        """Counts and position of every source, by name."""
        return {source.config.name: source.state_dict() for source in self._sources}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; the sources must be the same ones."""
        names = [source.config.name for source in self._sources]
        if set(names) != set(state):
            raise UserError(
                f"the checkpoint was written with the sources {', '.join(sorted(state))}; the "
                f"mixture has {', '.join(sorted(names))}: resume with the same mixture"
            )
        for source in self._sources:
            source.load_state_dict(state[source.config.name])


def encoded(
    records: Iterable[Record | Reason],
    encode: Encode,
    longest: int | None,
    statistics: SourceStatistics,
) -> Iterator[Document]:
    """Encode and cut records, and count them; those without a target are left out."""
    for record in records:
        item = record if isinstance(record, Reason) else fit(encode(record), longest, statistics)
        if isinstance(item, Reason):
            statistics.skipped[item] += 1
        else:
            yield item


def fit(
    encoded: tuple[list[int], list[bool]] | Reason,
    longest: int | None,
    statistics: SourceStatistics,
) -> Document | Reason:
    """Cut a document to `longest` tokens and count it; a reason where no target is left."""
    if isinstance(encoded, Reason):
        return encoded
    tokens, loss = encoded
    cut = max(0, len(tokens) - longest) if longest is not None else 0
    if cut:
        tokens, loss = tokens[:longest], loss[:longest]
    if not any(loss[1:]):  # the first token is an input only
        return Reason.BEYOND_CONTEXT if cut else Reason.EMPTY_ANSWER
    statistics.truncated += bool(cut)
    statistics.tokens_cut += cut
    statistics.documents += 1
    statistics.tokens += len(tokens)
    return Document(tokens, loss)
