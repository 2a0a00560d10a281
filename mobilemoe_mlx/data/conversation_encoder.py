"""Records to tokens and loss flags for fine-tuning: a conversation as its checkpoint writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mobilemoe_mlx.data.chat import encode_conversation
from mobilemoe_mlx.data.mixture import Document
from mobilemoe_mlx.data.records import ROLES, Conversation, has_answer
from mobilemoe_mlx.data.source_config import LossOn
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer import ChatTokenizer

_PROBE = "mobilemoe_probe"  # a name that no template writes by itself


class ConversationEncoder:
    """Encodes conversations by the tokenizer's chat template, or else in the published format.

    `writes_tools`: whether tool calls, their results and the tools come out of the template.
    """

    def __init__(self, tokenizer: ChatTokenizer, loss_on: LossOn) -> None:
        self._tokenizer = tokenizer
        self._loss_on = loss_on
        self.has_template = bool(tokenizer.has_chat_template)
        self._arguments = _arguments_form(tokenizer) if self.has_template else None
        self.writes_tools = self._arguments is not None

    def __call__(self, record: Conversation) -> Document | Reason:
        """Token ids and which of them are learnt; the reason where it cannot be written.

        An answer is learnt with the tokens that end its turn; an empty one is not. Raises UserError
        for a conversation that the template refuses, or in which it does not show the answers.
        """
        messages, tools = record.messages, record.tools
        if self.writes_tools:
            assert self._arguments is not None
            messages = [_with_arguments(message, self._arguments) for message in messages]
        elif tools or any(m.get("tool_calls") or m["role"] not in ROLES for m in messages):
            return Reason.TOOLS
        if not self.has_template:
            tokens, loss = encode_conversation(self._tokenizer, messages)
        elif self._loss_on == "all":
            tokens = self._tokenizer.apply_chat_template(messages, tools=tools)
            loss = []
        else:
            tokens, owners = self._tokenizer.answer_tokens(messages, tools)
            loss = [owner >= 0 and has_answer(messages[owner]) for owner in owners]
        if self._loss_on == "all":
            loss = [False] + [True] * (len(tokens) - 1)
        return Document(tokens, loss)


_Arguments = Callable[[Any], Any]


def _arguments_form(tokenizer: ChatTokenizer) -> _Arguments | None:
    """How to give a template the arguments of a tool call; None: it does not write tool calls.

    Records have them as a JSON text (OpenAI) or as an object (transformers). Some templates write
    only one of the two as plain JSON, and the other quoted again or as Python prints it.
    """
    written = {}
    for form in (_as_object, _as_text):
        text = _probed(tokenizer, form)
        if text is not None and re.search(rf'[^\\]"{_PROBE}":\s*1', text):
            written[form] = text
    if len(written) == 1:
        return next(iter(written))
    return (lambda arguments: arguments) if written else None


def _probed(tokenizer: ChatTokenizer, form: _Arguments) -> str | None:
    """What the template writes of a tool call; None where it fails or leaves a part out."""
    name, result = f"{_PROBE}_name", f"{_PROBE}_result"
    call = {
        "id": "123456789",
        "type": "function",
        "function": {"name": name, "arguments": form({_PROBE: 1})},
    }
    messages: Sequence[Mapping[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": name, "tool_call_id": "123456789", "content": result},
        {"role": "assistant", "content": "."},
    ]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except UserError:
        return None
    return text if name in text and result in text else None


def _as_object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        raise UserError(
            f"The chat template needs the arguments of a tool call as JSON, not {arguments!r}."
        ) from None


def _as_text(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _with_arguments(message: Mapping[str, Any], form: _Arguments) -> dict[str, Any]:
    """`message` with the arguments of its tool calls given by `form`."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for number, call in enumerate(message["tool_calls"], start=1):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(
                f"Tool call {number} is not of the form "
                '{"type": "function", "function": {"name": ..., "arguments": ...}}.'
            )
        arguments = form(function.get("arguments", {}))
        calls.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": calls}
