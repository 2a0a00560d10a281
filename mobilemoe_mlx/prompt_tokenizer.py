"""A prompt's tokens and an answer's text, without transformers and mlx-lm.

Those two take a second to import, three with PyTorch, and another to wrap a tokenizer of 128,256
entries. This knows no chat template; tokens and text are the same.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from mobilemoe_mlx import end_tokens, files
from mobilemoe_mlx.tokenizer_file import decoder_of, open_tokenizer

if TYPE_CHECKING:
    from mobilemoe_mlx.tokenizer import ChatTokenizer

_SPACE = "\u2581"  # SentencePiece's sign for a space
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def load_prompt_tokenizer(
    folder: str | Path, stop_ids: Iterable[int] = ()
) -> PromptTokenizer | ChatTokenizer:
    """The tokenizer of `folder`; arguments and errors as in `tokenizer.load_tokenizer`.

    The whole one where the pieces' bytes are not known here: neither bytes spelled as letters, as
    Llama 3's are, nor SentencePiece's.
    """
    folder = files.user_path(folder)
    raw = open_tokenizer(folder)
    piece_bytes = _piece_bytes(decoder_of(raw))
    if piece_bytes is None:
        from mobilemoe_mlx.tokenizer import load_tokenizer

        return load_tokenizer(folder, stop_ids)
    named = end_tokens.special_tokens(folder)
    return PromptTokenizer(
        raw, piece_bytes, named.get("bos_token"), {*end_tokens.of_tokenizer(folder), *stop_ids}
    )


class PromptTokenizer:
    """What `generate` needs of a tokenizer, by mlx-lm's names."""

    def __init__(
        self,
        raw: Tokenizer,
        piece_bytes: Callable[[str], bytes],
        bos_token: str | None,
        eos_token_ids: set[int],
    ) -> None:
        """`piece_bytes`: a piece of the vocabulary -> the bytes of text that it stands for."""
        self._raw, self._piece_bytes = raw, piece_bytes
        known = bos_token is not None and raw.token_to_id(bos_token) is not None
        self.bos_token = bos_token if known else None
        self.eos_token_ids = eos_token_ids

    def __len__(self) -> int:
        return int(self._raw.get_vocab_size())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, in which control tokens may be spelled out."""
        return list(self._raw.encode(text, add_special_tokens=add_special_tokens).ids)

    @property
    def detokenizer(self) -> TextStream:
        """A new one, in the middle of a text."""
        return TextStream(lambda token: self._piece_bytes(self._raw.id_to_token(token)))


class TextStream:
    """Text from tokens, as mlx-lm's streaming detokenizers give it: each character whole."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def add_token(self, token: int) -> None:
        """Take in the next token."""
        self._text += self._decoder.decode(self._token_bytes(token))

    def finalize(self) -> None:
        """No more tokens will come: half a character becomes U+FFFD."""
        self._text += self._decoder.decode(b"", final=True)

    @property
    def last_segment(self) -> str:
        """The text that became certain since this was read last."""
        text, self._text = self._text, ""
        return text


def _piece_bytes(decoder: Any) -> Callable[[str], bytes] | None:
    if isinstance(decoder, dict) and decoder.get("type") == "ByteLevel":
        letters = _byte_letters()
        return lambda piece: b"".join(
            letters[c] if c in letters else c.encode() for c in piece
        )  # other letters are a control token's
    steps = decoder.get("decoders", []) if isinstance(decoder, dict) else []
    if {"type": "ByteFallback"} in steps:
        return _sentencepiece_bytes
    return None


def _sentencepiece_bytes(piece: str) -> bytes:
    if _BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()


def _byte_letters() -> dict[str, bytes]:
    """The letter that GPT-2's vocabulary, and every one since, spells each byte with.

    A byte that is a visible character of Latin-1 is that; the others follow from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = {chr(byte): bytes([byte]) for byte in visible}
    return letters | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
