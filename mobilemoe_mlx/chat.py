"""A conversation that keeps its key/value cache between turns, and the loop that runs one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, TextIO

from mobilemoe_mlx import chat_commands, conversation_file
from mobilemoe_mlx.chat_commands import Command
from mobilemoe_mlx.data.chat import template_difference
from mobilemoe_mlx.engines import Engine
from mobilemoe_mlx.errors import DamagedModel, UserError
from mobilemoe_mlx.generate import Statistics, Step, check_unicode, stream
from mobilemoe_mlx.generation_options import GenerationOptions

if TYPE_CHECKING:
    from mobilemoe_mlx.prompt_tokenizer import PromptTokenizer
    from mobilemoe_mlx.tokenizer import ChatTokenizer


class Conversation:
    """Messages so far, and a session that holds their tokens.

    Each turn is rendered anew with the tokenizer's chat template; the session keeps the beginning
    that the rendered tokens share with it, and only the rest is computed. So an answer is the same
    as without one.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer | PromptTokenizer,
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
        self.tokenizer, self.options = tokenizer, options
        self.session = engine.session()
        self._fed: list[int] = []  # the tokens in the session
        self._system = system
        self.reset()

    def reset(self) -> None:
        """Forget all messages but the system's."""
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})

    def load(self, messages: conversation_file.Messages) -> None:
        """Go on from `messages`; a system message among them replaces this conversation's.

        Raises UserError when they fill the context; the conversation is then as it was.
        """
        if not messages or messages[0]["role"] != "system":
            messages = [m for m in self.messages if m["role"] == "system"] + messages
        used = len(self._render(messages)) if messages else 0
        if used >= self.session.context:
            raise UserError(
                f"That conversation has {used} tokens, but the model's context is "
                f"{self.session.context}."
            )
        self.messages = list(messages)
        if messages and messages[0]["role"] == "system":
            self._system = messages[0]["content"]

    def context_text(self) -> str:
        """How much of the context the messages take, as a sentence."""
        used, context = (
            len(self._render(self.messages)) if self.messages else 0,
            self.session.context,
        )
        return f"Context: {used:,} of {context:,} tokens used, {max(0, context - used):,} left."

    def ask(
        self, text: str, progress: Callable[[int, int], None] | None = None
    ) -> Generator[Step | Statistics, None, None]:
        """Yield the answer to `text` as `generate.stream` does.

        Closing the iterator early, or raising from `progress`, ends the turn: what was yielded of
        the answer is kept, and a message without any answer is forgotten. Raises UserError when
        `text` has lone surrogates, when the chat template fails, and when the conversation outgrows
        the context; it is then as it was before.
        """
        check_unicode("The message", text)
        question = {"role": "user", "content": text}
        prompt = self._render([*self.messages, question])
        if len(prompt) >= self.session.context:
            raise UserError(
                f"With this message the conversation has {len(prompt)} tokens, but the model's "
                f"context is {self.session.context}, answer included. "
                "The message was not sent: shorten it, or /reset."
            )
        return self._ask(question, prompt, progress)

    def _ask(
        self,
        question: dict[str, str],
        prompt: list[int],
        progress: Callable[[int, int], None] | None,
    ) -> Generator[Step | Statistics, None, None]:
        # At least one token is computed anew: the answer begins with its scores.
        shared = min(_common_prefix(prompt, self._fed), len(prompt) - 1)
        self.session.rewind(shared)
        tokens, answer = list(prompt), ""
        try:
            for item in stream(
                self.session, self.tokenizer, prompt[shared:], self.options, progress
            ):
                if isinstance(item, Step):
                    tokens.append(item.token)
                    answer += item.text
                yield item
        finally:
            # The session may hold less than these tokens, after an interrupt, or one more.
            self._fed = tokens[: self.session.position]
            if len(tokens) > len(prompt):
                self.messages += [question, {"role": "assistant", "content": answer}]

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        tokens = list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        if not tokens:
            raise UserError(
                "The chat template gives no tokens for this conversation. It is the checkpoint's "
                "(chat_template in tokenizer_config.json, or chat_template.jinja)."
            )
        return tokens


def run(
    conversation: Conversation,
    read_line: Callable[[], str | None],
    output: TextIO,
    notes: TextIO,
    *,
    interactive: bool = False,
) -> bool:
    """Answer lines until /exit or the end of input; -> whether any message was answered, or none
    was sent.

    Answers go to `output`, all else to `notes`. `read_line` returns the next line, or None at the
    end of input. `interactive`: the room left is told after each answer. Ctrl-C during an answer
    stops the answer (it is noticed after the token, or the lot of prompt tokens, that is being
    computed); a second one while the first is pending is a KeyboardInterrupt. Main thread only.
    Raises DamagedModel when the model gives no numbers.
    """
    if (difference := template_difference(conversation.tokenizer)) is not None:
        print(
            "The chat template differs from the format that MobileMoE is trained in: "
            f"{difference}. Answers may be worse for it.",
            file=notes,
        )
    sent = answered = 0
    while (line := read_line()) is not None:
        command = chat_commands.parse(line)
        if command is not None and command.name == "/exit":
            break
        text = line.strip() if command is None else command.argument
        try:
            if command is not None and command.name != "/send":
                print(_obey(conversation, command), file=notes)
            elif command is None and (slip := chat_commands.misspelt(line)) is not None:
                print(slip, file=notes)
            elif text:
                sent += 1
                _answer(conversation, text, output, notes)
                answered += 1
                if interactive:
                    print(conversation.context_text(), file=notes)
        except DamagedModel:
            raise
        except UserError as error:
            print(error, file=notes)
    return answered > 0 or sent == 0


def _obey(conversation: Conversation, command: Command) -> str:
    """Do what a command other than /exit and /send says; -> what to tell."""
    if command.name == "/help":
        return chat_commands.HELP
    if command.name == "/context":
        return conversation.context_text()
    if command.name == "/reset":
        conversation.reset()
        return "The conversation is forgotten."
    if not command.argument:
        raise UserError(f"{command.name} needs the name of a file: {command.name} FILE.")
    if command.name == "/save":
        path = conversation_file.save(command.argument, conversation.messages)
        return f"Saved {len(conversation.messages)} messages to {path}."
    conversation.load(conversation_file.load(command.argument))
    return f"Went back to {len(conversation.messages)} messages. {conversation.context_text()}"


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
                f"{conversation.session.context} tokens. /reset begins anew.",
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
