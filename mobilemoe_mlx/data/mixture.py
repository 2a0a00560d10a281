"""A weighted mixture of sources: which one gives the next document, and where each one stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.data.chat import encode_conversation
from mobilemoe_mlx.data.sources import Format, Source, SourceConfig
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer import BEGIN_OF_TEXT, END_OF_TEXT, AnyTokenizer, encode_text


class Document(NamedTuple):
    """One encoded text or conversation: token ids, and which of them are targets of the loss."""

    tokens: list[int]
    loss: list[bool]


Encode = Callable[[Any], tuple[list[int], list[bool]]]
"""Turns one record (`str` for text, messages for chat) into tokens and loss flags."""


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
        return cls(table.format, sources)


def load_mixture(path: Path | str) -> MixtureConfig:
    """Read a mixture file (TOML); `UserError` names the file and what is wrong in it."""
    path = files.user_path(path)
    values = files.read_toml(path)
    try:
        return MixtureConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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
    the shares are exact up to one document. `state_dict` is JSON-serialisable and resuming exact.
    """

    def __init__(
        self, config: MixtureConfig, base_folder: Path | str | None, encode: Encode, seed: int
    ) -> None:
        self.config = config
        self._encode = encode
        self._sources = [Source(source, base_folder, seed) for source in config.sources]
        total = sum(source.weight for source in config.sources)
        self._shares = [source.weight / total for source in config.sources]
        self._tokens = [0] * len(self._sources)
        self._documents = [0] * len(self._sources)

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        total = sum(self._tokens)
        behind = [share * total - n for share, n in zip(self._shares, self._tokens, strict=True)]
        chosen = behind.index(max(behind))
        document = Document(*self._encode(next(self._sources[chosen])))
        self._tokens[chosen] += len(document.tokens)
        self._documents[chosen] += 1
        return document

    def statistics(self) -> dict[str, dict[str, int]]:
        """Per source name: tokens and documents given, epochs completed, records skipped."""
        return {
            source.config.name: {
                "tokens": tokens,
                "documents": documents,
                "epochs": source.epoch,
                "skipped": source.skipped,
            }
            for source, tokens, documents in zip(
                self._sources, self._tokens, self._documents, strict=True
            )
        }

    def state_dict(self) -> dict[str, Any]:
        """Counts and position of every source, by name."""
        return {
            source.config.name: {
                "tokens": tokens,
                "documents": documents,
                "source": source.state_dict(),
            }
            for source, tokens, documents in zip(
                self._sources, self._tokens, self._documents, strict=True
            )
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; the sources must be the same ones."""
        names = [source.config.name for source in self._sources]
        if set(names) != set(state):
            raise UserError(
                f"the checkpoint was written with the sources {', '.join(sorted(state))}; the "
                f"mixture has {', '.join(sorted(names))}: resume with the same mixture"
            )
        for i, name in enumerate(names):
            self._tokens[i] = state[name]["tokens"]
            self._documents[i] = state[name]["documents"]
            self._sources[i].load_state_dict(state[name]["source"])
