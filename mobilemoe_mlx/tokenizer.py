"""Tokenizers: load one from a folder, train one with SentencePiece, encode text safely.

A trained tokenizer is a folder with `tokenizer.model` (SentencePiece) and `tokenizer.json` (the
form that transformers and mlx-lm read). Both give the same tokens. SentencePiece writes a space as
U+2581, so a U+2581 in the text comes back as a space; all other text survives the round trip.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import sentencepiece
from mlx_lm.tokenizer_utils import (
    BPEStreamingDetokenizer,
    NaiveStreamingDetokenizer,
    SPMStreamingDetokenizer,
    StreamingDetokenizer,
    TokenizerWrapper,
    _is_bpe_decoder,
    _is_spm_decoder,
    _is_spm_decoder_no_space,
)
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from mobilemoe_mlx import chat_template, end_tokens, files
from mobilemoe_mlx.all_or_none import write_together
from mobilemoe_mlx.chat_format import (
    BEGIN_OF_TEXT,
    CHAT_TEMPLATE,
    HEADER_END,
    HEADER_START,
    SPECIAL_TOKENS,
    encode_text,
    written_chat_template,
)
from mobilemoe_mlx.end_tokens import END_OF_TEXT, EOT
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer_file import cannot_be_loaded, decoder_of, open_tokenizer

AnyTokenizer: TypeAlias = TokenizerWrapper | PreTrainedTokenizerBase

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers knows it
_SPACE = "\u2581"
_MAX_LINE_CHARS = 65_536  # a longer line is cut, so that one huge line costs no training memory
# Every printable ASCII character is a piece of its own, however rare it is in the training text.
_REQUIRED_CHARS = "".join(map(chr, range(0x21, 0x7F)))
_SYMBOLS = ["\n", "\t"]  # pieces that never merge with others
# The vocabulary has these, the control tokens, <unk> and a token for each byte, whatever the text.
MIN_VOCAB_SIZE = len(_REQUIRED_CHARS) + len(_SYMBOLS) + len(SPECIAL_TOKENS) + 1 + 256


class ChatTokenizer(TokenizerWrapper):
    """mlx-lm's tokenizer, whose chat template never makes a control token of a message's text."""

    def apply_chat_template(
        self, conversation: Sequence[Any], *, tokenize: bool = True, **options: Any
    ) -> Any:
        """Token ids of a conversation, or with `tokenize` false the template's text.

        `conversation`: messages with "role" and "content". `options`: those of transformers, such
        as `add_generation_prompt`. Raises UserError, one sentence, when the template fails.
        """
        options["return_dict"] = False
        given = {name: options.pop(name) for name in ("tools", "documents") if options.get(name)}
        render = self._render(options)
        if not tokenize:
            return chat_template.render_safely(render, conversation, given)
        return chat_template.chat_tokens(
            render,
            conversation,
            given,
            self._control_tokens(),
            functools.partial(encode_text, self),
        )

    def answer_tokens(
        self, conversation: Sequence[Any], tools: Sequence[Any] | None = None
    ) -> tuple[list[int], list[int]]:
        """A conversation's ids and, for each, the message whose answer it is part of, or -1.

        The ids are those of `apply_chat_template`. Answers are the assistant's messages: what the
        template marks with `{% generation %}`, else what stands after its generation prompt. Raises
        UserError, one sentence, when the template fails or its answers cannot be found.
        """
        given = {"tools": list(tools)} if tools else {}
        template = self._tokenizer.get_chat_template(None, given.get("tools"))
        marks_answers = _GENERATION_TAG.search(template) is not None

        def render_generation(
            messages: Sequence[Any], others: Mapping[str, Any]
        ) -> tuple[str, list[tuple[int, int]]]:
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
                **others,
            )
            return texts[0], spans[0]

        return chat_template.answer_tokens(
            self._render({"return_dict": False}),
            render_generation if marks_answers else None,
            conversation,
            given,
            self._control_tokens(),
            functools.partial(encode_text, self),
        )

    def _render(self, options: Mapping[str, Any]) -> chat_template.Render:
        def render(messages: Sequence[Any], others: Mapping[str, Any]) -> str:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, **options, **others)
            )

        return render

    def _control_tokens(self) -> dict[str, int]:
        return {
            token.content: index
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
        }


def load_tokenizer(folder: str | Path, stop_ids: Iterable[int] = ()) -> ChatTokenizer:
    """Load `folder`'s tokenizer.json, which alone decides the ids, from local files.

    tokenizer_config.json and special_tokens_map.json only say which of its tokens begin and end a
    text, and give the chat template (chat_template.jinja wins). Their tokenizer class, their flags
    and ids of their own change nothing, code in the folder is never run, and decoding never removes
    the space before punctuation. Generation stops at `end_tokens.of_tokenizer` and at `stop_ids`
    (the `eos_token_id` of a config.json). Raises UserError when a file is absent or unreadable.
    """
    folder = files.user_path(folder)
    raw = open_tokenizer(folder)
    vocabulary = raw.get_vocab()
    try:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw,
            clean_up_tokenization_spaces=False,
            chat_template=written_chat_template(folder),
            **{n: t for n, t in end_tokens.special_tokens(folder).items() if t in vocabulary},
        )
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of what the folder says
        raise cannot_be_loaded(folder, error) from error
    tokenizer._tokenizer = raw  # as the file has it, whatever the class above made of a copy
    ends = {*end_tokens.of_tokenizer(folder), *stop_ids}
    return ChatTokenizer(tokenizer, _detokenizer_class(decoder_of(raw)), ends)


def _detokenizer_class(decoder: Any) -> Callable[..., StreamingDetokenizer]:
    """mlx-lm's choice for a tokenizer.json's `decoder`."""
    if _is_spm_decoder(decoder):
        return SPMStreamingDetokenizer
    if _is_spm_decoder_no_space(decoder):
        return functools.partial(SPMStreamingDetokenizer, trim_space=False)
    return BPEStreamingDetokenizer if _is_bpe_decoder(decoder) else NaiveStreamingDetokenizer


def eos_token_ids(tokenizer: AnyTokenizer) -> list[int]:
    """Return, sorted, the ids that end a generation: <|end_of_text|>, <|eot|> and the eos token."""
    vocabulary = tokenizer.get_vocab()
    ids = {vocabulary[name] for name in (END_OF_TEXT, EOT) if name in vocabulary}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return sorted(ids)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: str | Path,
    max_chars: int = 50_000_000,
) -> dict[str, int]:
    """Train a SentencePiece BPE tokenizer of exactly `vocab_size` tokens and write it to `folder`.

    Byte fallback, no normalisation, no dummy prefix; spaces in a row, newline, tab and every digit
    are pieces of their own. When `texts` hold more than `max_chars` characters, an evenly spaced
    sample of whole texts is used. The same arguments give the same files, byte for byte.

    Returns {"vocab_size", "texts", "characters"}, the last two counting what was trained on. Raises
    UserError when there is no text, or when the vocabulary is too small or too large for it.
    """
    if not MIN_VOCAB_SIZE <= vocab_size < 2**31:
        raise UserError(
            f"The vocabulary size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE} tokens "
            "(control tokens, bytes, ASCII characters) and less than 2^31."
        )
    sample = _sample(texts, max_chars)
    if not any(sample):
        raise UserError("There is no text to train the tokenizer on: every input is empty.")
    model = _train_sentencepiece(sample, vocab_size)
    folder = files.user_path(folder)
    config = _tokenizer_config()
    special_tokens_map = {key: config[key] for key in ("bos_token", "eos_token")}
    contents = {
        "tokenizer.model": model,
        "tokenizer.json": _fast_tokenizer(model).to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "special_tokens_map.json": json.dumps(special_tokens_map, indent=2).encode(),
    }
    write_together(folder, contents)
    return {
        "vocab_size": vocab_size,
        "texts": len(sample),
        "characters": sum(map(len, sample)),
    }


def _sample(texts: Iterable[str], max_chars: int) -> list[str]:
    """Keep every 2^n-th text, with the smallest n for which the kept ones fit into `max_chars`."""
    kept: list[str] = []
    chars, stride = 0, 1
    for index, text in enumerate(texts):
        if index % stride:
            continue
        kept.append(text)
        chars += len(text)
        while chars > max_chars and len(kept) > 1:
            kept, stride = kept[::2], stride * 2
            chars = sum(map(len, kept))
    return kept


def _train_sentencepiece(texts: Sequence[str], vocab_size: int) -> bytes:
    """Train on `texts` and return the serialized model."""

    def lines() -> Iterator[bytes]:
        # Newline and tab are symbols that never merge, so cutting there loses nothing.
        for text in texts:
            for line in re.split(r"[\n\t\0]", text):
                for start in range(0, len(line), _MAX_LINE_CHARS):
                    yield line[start : start + _MAX_LINE_CHARS].encode("utf-8", "replace")

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            required_chars=_REQUIRED_CHARS,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=_SYMBOLS,
            control_symbols=[HEADER_START, HEADER_END, EOT],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            bos_piece=BEGIN_OF_TEXT,
            eos_piece=END_OF_TEXT,
            max_sentence_length=4 * _MAX_LINE_CHARS,
            num_threads=2,  # recorded in the model, so not the number of this machine
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(_misfit(vocab_size, str(error))) from error
    return model.getvalue()


def _misfit(vocab_size: int, error: str) -> str:
    """The sentence for SentencePiece's `error` about a vocabulary of this size, and its limit."""
    start = f"A vocabulary of {vocab_size} tokens is"
    if found := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"{start} too small for this text: with a token for each of its frequent characters "
            f"it has at least {found[1]}."
        )
    if found := re.search(r"too high .* value <= (\d+)", error):
        return (
            f"{start} too large for this text, which has {found[1]} different pieces at most: "
            "choose a smaller one, or give more text."
        )
    return f"{start} not what SentencePiece can train on this text: {error}"


def _fast_tokenizer(model: bytes) -> Tokenizer:
    """Return the `tokenizers` form of a SentencePiece BPE model: the same tokens for any text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(i) for i in ids]
    mergeable = {
        piece: i
        for i, piece in enumerate(pieces)
        if not processor.is_control(i)
        and not processor.is_byte(i)
        and not processor.is_unknown(i)
        and piece not in _SYMBOLS
    }
    # SentencePiece joins two neighbours when their concatenation is a piece, best score (lowest id)
    # first; so every way to cut a piece in two is a merge, in the order of the pieces' ids.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in mergeable
        for cut in range(1, len(piece))
        if piece[:cut] in mergeable and piece[cut:] in mergeable
    ]
    tokenizer = Tokenizer(
        BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            byte_fallback=True,
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    # This exact sequence is what mlx-lm recognises as SentencePiece without a dummy prefix.
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS]
    )
    bos = tokenizer.token_to_id(BEGIN_OF_TEXT)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1",
        special_tokens=[(BEGIN_OF_TEXT, bos)],
    )
    return tokenizer


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
