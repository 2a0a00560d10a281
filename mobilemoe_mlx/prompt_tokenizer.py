"""A prompt's or a chat's tokens and an answer's text, without transformers and mlx-lm.

Those two take a second to import, three with PyTorch, and another to wrap a tokenizer of 128,256
entries. Tokens and text are the same.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from mobilemoe_mlx import chat_template, end_tokens, files, jinja_template
from mobilemoe_mlx.chat_format import encode_text, written_chat_template
from mobilemoe_mlx.errors import UserError
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
    return PromptTokenizer(
        raw,
        piece_bytes,
        end_tokens.special_tokens(folder),
        {*end_tokens.of_tokenizer(folder), *stop_ids},
        written_chat_template(folder),
    )


class PromptTokenizer:
    """What `generate` and `chat` need of a tokenizer, by the names of mlx-lm and transformers."""

    def __init__(
        self,
        raw: Tokenizer,
        piece_bytes: Callable[[str], bytes],
        special_tokens: Mapping[str, str],
        eos_token_ids: set[int],
        template: str | Mapping[str, str] | None = None,
    ) -> None:
        """`piece_bytes`: a piece of the vocabulary -> the bytes of text that it stands for.

        `special_tokens`: "bos_token" and others -> the token. `template`: that of chats, or several
        by name.
        """
        self._raw, self._piece_bytes = raw, piece_bytes
        self._special_tokens = {
            name: token
            for name, token in special_tokens.items()
            if raw.token_to_id(token) is not None
        }
        self.eos_token_ids = eos_token_ids
        self._template = template

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text, if there is one."""
        return self._special_tokens.get("bos_token")

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be written."""
        return self._template is not None

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> list[int]:
        """Token ids of messages with "role" and "content", as `ChatTokenizer` gives them.

        Raises UserError, one sentence, when the template fails.
        """
        added = self._raw.get_added_tokens_decoder()
        return chat_template.chat_tokens(
            functools.partial(self._render, add_generation_prompt),
            conversation,
            {},
            {token.content: index for index, token in added.items() if token.special},
            functools.partial(encode_text, self),
        )

    def _render(
        self,
        add_generation_prompt: bool,
        messages: Sequence[Mapping[str, Any]],
        others: Mapping[str, Any],
    ) -> str:
        template = self._template
        if isinstance(template, Mapping):
            if "default" not in template:
                raise UserError(
                    "The tokenizer has several chat templates and none of them is called "
                    f"'default': {', '.join(template)}."
                )
            template = template["default"]
        assert template is not None, "has_chat_template says so"
        return jinja_template.compiled(template)(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
            **others,
        )

    def __len__(self) -> int:
        return int(self._raw.get_vocab_size())

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, control tokens among them."""
        return self._raw.get_vocab()

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        verbose: bool = True,
    ) -> list[int]:
        """Token ids of `text`, in which control tokens may be spelled out.

        `split_special_tokens`: they are text there. `verbose` means nothing here.
        """
        self._raw.encode_special_tokens = split_special_tokens
        return list(self._raw.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, control tokens spelled out."""
        return self._raw.decode(list(tokens), skip_special_tokens=False)

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
