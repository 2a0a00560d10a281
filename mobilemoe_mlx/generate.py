"""Text generation on top of mlx-lm's: checked options, stop strings, text that arrives whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, generation_stream, wired_limit
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from mlx_lm.tokenizer_utils import StreamingDetokenizer, TokenizerWrapper

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.memory import peak_memory_bytes
from mobilemoe_mlx.model import Model

# How many tokens of the prompt are computed at once; between two lots an interrupt is noticed.
PREFILL_TOKENS = 512

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


def stream(
    model: Model,
    tokenizer: TokenizerWrapper,
    prompt_tokens: Sequence[int],
    options: GenerationOptions,
    cache: list[Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[Step | Statistics, None, None]:
    """Yield a Step for each token generated, end token included, and Statistics at the end.

    The Steps' texts joined are the answer: each character is whole, nothing of a stop string is in
    it, no space is removed from it. Bytes at the very end that are not a whole character become
    U+FFFD, as do tokens that the tokenizer lacks. Control tokens that do not end the answer are
    spelled out.

    `cache`: mlx-lm prompt cache, one entry a layer, whose tokens precede `prompt_tokens`; it grows
    by the prompt and every token of a Step yielded. `progress` is called with (tokens done, tokens
    in all) while the prompt is computed, and may raise to stop it; the cache then begins with the
    tokens done. `options.max_tokens` beyond the context is lowered to what is left. Raises
    UserError for an empty prompt, a token that is not in the vocabulary, or a prompt that fills the
    context.
    """
    before = cache[0].offset if cache else 0
    room = tokens_left(model.args, before + len(prompt_tokens))
    if not prompt_tokens:
        raise UserError("The prompt is empty: there is nothing to continue.")
    if not 0 <= min(prompt_tokens) <= max(prompt_tokens) < model.args.vocab_size:
        raise UserError(
            f"The prompt has token {max(prompt_tokens, key=abs)}, but the model knows 0 to "
            f"{model.args.vocab_size - 1}: this tokenizer belongs to another model."
        )
    return _stream(
        model, tokenizer, prompt_tokens, options, min(options.max_tokens, room), cache, progress
    )


def tokens_left(args: ModelArgs, used: int) -> int:
    """Tokens that can be generated after `used`; raises UserError when there are none."""
    context = args.max_position_embeddings
    if used >= context:
        raise UserError(
            f"The prompt has {used} tokens, but the model's context is {context} "
            "(max_position_embeddings), answer included. Shorten the prompt."
        )
    return context - used


def encode_prompt(tokenizer: TokenizerWrapper, text: str) -> list[int]:
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


def _stream(
    model: Model,
    tokenizer: TokenizerWrapper,
    prompt_tokens: Sequence[int],
    options: GenerationOptions,
    max_tokens: int,
    cache: list[Any] | None,
    progress: Callable[[int, int], None] | None,
) -> Generator[Step | Statistics, None, None]:
    if options.seed is not None:
        mx.random.seed(options.seed)
    sampler = make_sampler(
        options.temperature,
        top_p=options.top_p,
        min_p=options.min_p,
        # mlx-lm refuses a top-k that keeps everything.
        top_k=options.top_k if options.top_k < model.args.vocab_size else 0,
    )
    penalty = options.repetition_penalty if options.repetition_penalty != 1 else None
    detokenizer = _detokenizer(tokenizer)
    known = len(tokenizer)
    stop = StopStrings(options.stop)
    count, reason = 0, ""
    start = first = last = time.perf_counter()
    with wired_limit(model, [generation_stream]):
        for token, _ in generate_step(
            mx.array(list(prompt_tokens)),
            model,
            max_tokens=max_tokens,
            sampler=sampler,
            logits_processors=make_logits_processors(repetition_penalty=penalty),
            prompt_cache=cache,
            prompt_progress_callback=progress,
            prefill_step_size=PREFILL_TOKENS,
        ):
            last = time.perf_counter()
            count += 1
            if count == 1:
                first = last
            if token in tokenizer.eos_token_ids:
                reason = "end token"
            elif token < known:
                detokenizer.add_token(token)
            if reason or token >= known or count == max_tokens:
                detokenizer.finalize()
            text = detokenizer.last_segment
            text = stop.add(text if reason or token < known else text + REPLACEMENT)
            if stop.found:
                reason = "stop string"
            elif not reason and count == max_tokens:
                reason = "max tokens" if max_tokens == options.max_tokens else "context"
            yield Step(token, text + stop.finish() if reason else text)
            if reason:
                break
    yield Statistics(
        prompt_tokens=len(prompt_tokens),
        prompt_tokens_per_second=len(prompt_tokens) / (first - start),
        generated_tokens=count,
        generated_tokens_per_second=(count - 1) / (last - first) if count > 1 else None,
        peak_memory_bytes=peak_memory_bytes(),
        finish_reason=reason,
    )


def _detokenizer(tokenizer: TokenizerWrapper) -> StreamingDetokenizer:
    """mlx-lm's detokenizer, in the middle of a text.

    At the start of a text it drops a leading space. An answer is the middle of one: the prompt came
    before it, so a space that the first token begins with is the answer's own.
    """
    detokenizer = tokenizer.detokenizer
    if isinstance(getattr(type(detokenizer), "text", None), property):
        return detokenizer  # decodes with the tokenizer itself, which drops nothing
    detokenizer.text = "."
    detokenizer.offset = len(detokenizer.text)
    return detokenizer
