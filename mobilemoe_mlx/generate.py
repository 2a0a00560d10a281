"""Text from an engine's tokens: stop strings, characters that arrive whole, what it cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mobilemoe_mlx import end_tokens
from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.hub import resolve
from mobilemoe_mlx.engines import Engine, Session, model_args, open_engine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.memory import peak_memory_bytes
from mobilemoe_mlx.onnx_folder.folder import is_onnx_folder
from mobilemoe_mlx.prompt_tokenizer import PromptTokenizer, TextStream, load_prompt_tokenizer
from mobilemoe_mlx.sampling import Sampler

if TYPE_CHECKING:  # transformers and mlx-lm are slow to import, and a prompt needs neither
    from mlx_lm.tokenizer_utils import StreamingDetokenizer, TokenizerWrapper

    from mobilemoe_mlx.tokenizer import ChatTokenizer

REPLACEMENT = "\ufffd"  # Unicode's sign for what is not a character


@dataclass(frozen=True)
class Step:
    """One generated token, and the text that became certain with it (often less, or none)."""

    token: int
    text: str


@dataclass(frozen=True)
class Statistics:
    """What a generation cost."""

    prompt_tokens: int  # computed in this call; tokens already in the cache are not counted
    prompt_tokens_per_second: float
    generated_tokens: int
    generated_tokens_per_second: float | None  # after the first token; None with a single one
    peak_memory_bytes: int  # of the process so far; see `memory.peak_memory_bytes`
    finish_reason: str  # "end token", "stop string", "max tokens" or "context" (it is full)

    def __str__(self) -> str:
        rate = self.generated_tokens_per_second
        return (
            f"Prompt: {self.prompt_tokens} tokens, {self.prompt_tokens_per_second:.1f} tokens/s. "
            f"Generated: {self.generated_tokens} tokens"
            + (f", {rate:.1f} tokens/s" if rate is not None else "")
            + f". Peak memory: {self.peak_memory_bytes / 1e9:.2f} GB."
        )


def open_with_tokenizer(
    path_or_repo: str | Path, engine: str | None = None, **options: Any
) -> tuple[Engine, ChatTokenizer]:
    """A checkpoint's engine, ready to run, and its tokenizer, which knows every end of an answer.

    `engine` and `options`: see `open_engine`. Raises UserError for all that is wrong with the
    checkpoint, before its weights are read.
    """
    from mobilemoe_mlx.tokenizer import load_tokenizer

    folder = resolve(path_or_repo)
    tokenizer = load_tokenizer(folder, _end_token_ids(folder))
    return open_engine(folder, engine, **options), tokenizer


def open_for_prompts(
    path_or_repo: str | Path, engine: str | None = None, **options: Any
) -> tuple[Engine, PromptTokenizer | ChatTokenizer]:
    """The same with a tokenizer for prompts and chats alone, which is there sooner."""
    folder = resolve(path_or_repo)
    tokenizer = load_prompt_tokenizer(folder, _end_token_ids(folder))
    return open_engine(folder, engine, **options), tokenizer


def _end_token_ids(folder: Path) -> tuple[int, ...]:
    """Every token that ends an answer of the checkpoint or the ONNX export in `folder`."""
    if is_onnx_folder(folder):
        args = model_args(folder)
        return end_tokens.of_folder(folder, args.eos_token_id, args.vocab_size)
    return open_checkpoint(folder).end_token_ids()


def stream(
    session: Session,
    tokenizer: TokenizerWrapper | PromptTokenizer,
    prompt_tokens: Sequence[int],
    options: GenerationOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[Step | Statistics, None, None]:
    """Yield a Step for each token generated, end token included, and Statistics at the end.

    The Steps' texts joined are the answer: each character is whole, nothing of a stop string is in
    it, no space is removed from it. Bytes at the very end that are not a whole character become
    U+FFFD, as do tokens that the tokenizer lacks. Control tokens that do not end the answer are
    spelled out.

    The tokens of `session` precede `prompt_tokens`; it grows by the prompt and the tokens of the
    Steps yielded, with or without the last. `progress` is called with (tokens done, tokens in all)
    while the prompt is computed, and may raise to stop it. `options.max_tokens` beyond the context
    is lowered to what is left. Raises UserError for an empty prompt, a token that is not in the
    vocabulary, a prompt that fills the context, and a model whose logits are not finite.
    """
    if not prompt_tokens:
        raise UserError("The prompt is empty: there is nothing to continue.")
    room = tokens_left(session, len(prompt_tokens))
    session.check_tokens(prompt_tokens)
    sampler = Sampler(options, session.engine.args.vocab_size)
    answer = Answer(tokenizer, options, room)
    tokens = session.generate(prompt_tokens, sampler, answer.most, progress)
    return _stream(tokens, answer, len(prompt_tokens))


def _stream(
    tokens: Iterator[int], answer: Answer, prompt_tokens: int
) -> Generator[Step | Statistics, None, None]:
    start = first = last = time.perf_counter()
    with contextlib.closing(cast(Generator[int, None, None], tokens)):
        for token in tokens:
            last = time.perf_counter()
            if answer.count == 0:
                first = last
            yield Step(token, answer.add(token))
            if answer.finish_reason:
                break
    count = answer.count
    yield Statistics(
        prompt_tokens=prompt_tokens,
        prompt_tokens_per_second=prompt_tokens / (first - start),
        generated_tokens=count,
        generated_tokens_per_second=(count - 1) / (last - first) if count > 1 else None,
        peak_memory_bytes=peak_memory_bytes(),
        finish_reason=answer.finish_reason,
    )


class Answer:
    """Makes text of an answer's tokens and says when it ends: `finish_reason`, else empty."""

    def __init__(
        self, tokenizer: TokenizerWrapper | PromptTokenizer, options: GenerationOptions, room: int
    ) -> None:
        self.most = min(options.max_tokens, room)  # tokens
        self.count = 0
        self.finish_reason = ""
        self._reason_at_most = "max tokens" if self.most == options.max_tokens else "context"
        self._ends = tokenizer.eos_token_ids
        self._known = len(tokenizer)
        self._detokenizer = _detokenizer(tokenizer)
        self._stop = StopStrings(options.stop)

    def add(self, token: int) -> str:
        """Take in a token; return the text that is certain with it."""
        self.count += 1
        is_end, is_known = token in self._ends, token < self._known
        if is_known and not is_end:
            self._detokenizer.add_token(token)
        if is_end or not is_known or self.count == self.most:
            self._detokenizer.finalize()
        text = self._detokenizer.last_segment
        text = self._stop.add(text if is_known or is_end else text + REPLACEMENT)
        if self._stop.found:
            self.finish_reason = "stop string"
        elif is_end:
            self.finish_reason = "end token"
        elif self.count == self.most:
            self.finish_reason = self._reason_at_most
        return text + self._stop.finish() if self.finish_reason else text


def tokens_left(session: Session, more: int) -> int:
    """Tokens that can be generated after `more` tokens of a prompt; raises UserError for none."""
    used, context = session.position + more, session.context
    if used >= context:
        raise UserError(
            f"The prompt has {used} tokens, but the model's context is {context} "
            "(max_position_embeddings), answer included. Shorten the prompt."
        )
    return context - used


def encode_prompt(tokenizer: TokenizerWrapper | PromptTokenizer, text: str) -> list[int]:
    """Token ids of a prompt to continue: the begin-of-text token, if the tokenizer has one, then
    `text`, in which control tokens may be spelled out. Raises UserError when `text` is empty or has
    lone surrogates."""
    if not text:
        raise UserError("The prompt is empty: there is nothing to continue.")
    check_unicode("The prompt", text)
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return list(tokenizer.encode(text, add_special_tokens=not has_bos))


def check_unicode(what: str, text: str) -> None:
    """Raise UserError, beginning with `what`, when `text` has lone surrogates.

    Python puts them where bytes of the command line or of standard input are not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not UTF-8 text: character {error.start + 1} is {text[error.start]!a}."
        ) from None


class StopStrings:
    """Passes text on as soon as it cannot become part of a stop string.

    The stop string that is complete first ends the text, whatever pieces the text came in; of two
    complete at the same character, the one that began first.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Take in more text; return what is now certain. Once `found`, that was the last of it."""
        held = self._held + text
        ends = [(i + len(s), i) for s in self._stop if (i := held.find(s)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return held[: min(ends)[1]]
        longest = max(map(len, self._stop), default=1) - 1
        begin = next(
            (
                i
                for i in range(max(0, len(held) - longest), len(held))
                if any(s.startswith(held[i:]) for s in self._stop)
            ),
            len(held),
        )
        self._held = held[begin:]
        return held[:begin]

    def finish(self) -> str:
        """The text still held back, now that no more will come."""
        held, self._held = self._held, ""
        return held


def _detokenizer(
    tokenizer: TokenizerWrapper | PromptTokenizer,
) -> StreamingDetokenizer | TextStream:
    """A detokenizer in the middle of a text.

    At the start of a text mlx-lm's drops a leading space. An answer is the middle of one: the
    prompt came before it, so a space that the first token begins with is the answer's own.
    """
    if isinstance(tokenizer, PromptTokenizer):
        return tokenizer.detokenizer
    detokenizer = tokenizer.detokenizer
    if isinstance(getattr(type(detokenizer), "text", None), property):
        return detokenizer  # decodes with the tokenizer itself, which drops nothing
    detokenizer.text = "."
    detokenizer.offset = len(detokenizer.text)
    return detokenizer
