"""A conversation that keeps its key/value cache between turns, and the loop that runs one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator
from typing import TextIO

from jinja2.exceptions import TemplateError
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mobilemoe_mlx.chat_commands import HELP
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.generate import (
    Statistics,
    Step,
    check_unicode,
    stream,
    tokens_left,
)
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.model import Model


class Conversation:
    """Messages so far, and the cache of their tokens.

    Each turn is rendered anew with the tokenizer's chat template; the cache keeps the beginning
    that the rendered tokens share with it, and only the rest is computed. So an answer is the same
    as without a cache.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: TokenizerWrapper,
        options: GenerationOptions,
        system: str | None = None,
    ) -> None:
        """`system`: the text of a system message.

        Raises UserError without a chat template, and for lone surrogates in `system`.
        """
        if not tokenizer.has_chat_template:
            raise UserError(
                "This checkpoint's tokenizer has no chat template: it is a base model, which "
                "continues text. Use `mobilemoe generate` with it."
            )
        check_unicode("The system message", system or "")
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        self._cache = make_prompt_cache(self.model)
        self._cached: list[int] = []

    def ask(
        self, text: str, progress: Callable[[int, int], None] | None = None
    ) -> Generator[Step | Statistics, None, None]:
        """Yield the answer to `text` as `generate.stream` does.

        Closing the iterator early, or raising from `progress`, ends the turn: what was yielded of
        the answer is kept, and a message without any answer is forgotten. Raises UserError when
        `text` has lone surrogates or the conversation outgrows the context; it is then as it was
        before.
        """
        check_unicode("The message", text)
        question = {"role": "user", "content": text}
        prompt = self._render([*self.messages, question])
        try:
            tokens_left(self.model.args, len(prompt))
        except UserError:
            raise UserError(
                f"With this message the conversation has {len(prompt)} tokens, but the model's "
                f"context is {self.model.args.max_position_embeddings}, answer included. "
                "The message was not sent: shorten it, or /reset."
            ) from None
        return self._ask(question, prompt, progress)

    def _ask(
        self,
        question: dict[str, str],
        prompt: list[int],
        progress: Callable[[int, int], None] | None,
    ) -> Generator[Step | Statistics, None, None]:
        # At least one token is computed anew: the answer begins with its scores.
        shared = min(_common_prefix(prompt, self._cached), len(prompt) - 1)
        trim_prompt_cache(self._cache, self._cache[0].offset - shared)
        self._cached = prompt[:shared]
        tokens, answer = list(prompt), ""
        try:
            for item in stream(
                self.model, self.tokenizer, prompt[shared:], self.options, self._cache, progress
            ):
                if isinstance(item, Step):
                    tokens.append(item.token)
                    answer += item.text
                yield item
        finally:
            # After an interrupt the cache may hold less than these tokens, or one more.
            self._cached = tokens[: self._cache[0].offset]
            if len(tokens) > len(prompt):
                self.messages += [question, {"role": "assistant", "content": answer}]

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        try:
            return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        except TemplateError as error:
            raise UserError(f"The chat template refuses this conversation: {error}.") from None


def run(
    conversation: Conversation,
    read_line: Callable[[], str | None],
    output: TextIO,
    notes: TextIO,
) -> None:
    """Answer lines until /exit or the end of input; answers go to `output`, all else to `notes`.

    `read_line` returns the next line, or None at the end of input. Ctrl-C during an answer stops
    the answer (it is noticed after the token, or the lot of prompt tokens, that is being computed);
    a second one while the first is pending is a KeyboardInterrupt. Main thread only.
    """
    while (line := read_line()) is not None:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
            print("The conversation is forgotten.", file=notes)
        elif text.startswith("/"):
            print(f"There is no command {text.split()[0]}. {HELP}", file=notes)
        elif text:
            try:
                _answer(conversation, text, output, notes)
            except UserError as error:
                print(error, file=notes)


def _answer(conversation: Conversation, text: str, output: TextIO, notes: TextIO) -> None:
    with _Interrupt() as interrupt:
        last = ""
        statistics: Statistics | None = None
        with (
            contextlib.suppress(_Interrupted),
            contextlib.closing(conversation.ask(text, interrupt.raise_if_pending)) as answer,
        ):
            for item in answer:
                if isinstance(item, Statistics):
                    statistics = item
                elif item.text:
                    last = item.text
                    output.write(last)
                    output.flush()
                interrupt.raise_if_pending()
        if not last.endswith("\n"):
            output.write("\n")
            output.flush()
        if statistics is None:
            print("(stopped)", file=notes)
            return
        if statistics.finish_reason == "context":
            print(
                "The answer is cut: the conversation fills the model's context of "
                f"{conversation.model.args.max_position_embeddings} tokens. /reset begins anew.",
                file=notes,
            )
        elif statistics.finish_reason == "max tokens":
            print(f"The answer is cut at max-tokens ({statistics.generated_tokens}).", file=notes)
        print(statistics, file=notes)


class _Interrupted(Exception):
    pass


class _Interrupt:
    """While active, the first Ctrl-C is only noted, so that it cannot tear the cache apart."""

    def __enter__(self) -> _Interrupt:
        self._pending = False
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        if self._pending:
            raise KeyboardInterrupt
        self._pending = True

    def raise_if_pending(self, *_: object) -> None:
        if self._pending:
            raise _Interrupted


def _common_prefix(a: list[int], b: list[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
