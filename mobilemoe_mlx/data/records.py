"""A record's content: its text, or its conversation as messages with the roles we know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mobilemoe_mlx.data.json_lines import BadRecord
from mobilemoe_mlx.data.source_config import SourceConfig
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import did_you_mean

ROLES = ("system", "user", "assistant")

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Conversation:
    """Messages for a chat template, with all their keys, and the tools that they may call.

    A content is a text; an assistant's message with "tool_calls" may be without one.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


Record = str | Messages | Conversation

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_TOOL_ROLES = {"tool", "function", "function_call", "function_response", "observation", "ipython"}
_TEXT_PARTS = {"text", "input_text", "output_text"}  # the last two: OpenAI's responses


def record_digest(record: Record) -> bytes:
    """The same bytes for records of the same content; blanks and capitals aside."""
    content = record.messages if isinstance(record, Conversation) else record
    said = json.dumps(_folded(content), sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).digest()


def _folded(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    if isinstance(value, Mapping):
        return {key: _folded(inner) for key, inner in value.items()}
    return [_folded(inner) for inner in value] if isinstance(value, list) else value


def read_record(
    row: Mapping[str, Any], config: SourceConfig, where: Callable[[], str]
) -> Record | Reason:
    """The row's text or conversation, or the reason why it has no content to learn from.

    A conversation is a `Conversation` where the source has a `tools_field`, else its messages.
    Roles are compared without regard to case. A content given as a list of text parts is joined.
    Raises BadRecord, which begins with the record's place `where()`, for an absent field or one of
    the wrong type.
    """
    try:
        return _content(row, config)
    except BadRecord as error:
        raise BadRecord(f"{where()} {error}") from None


def _content(row: Mapping[str, Any], config: SourceConfig) -> Record | Reason:
    if config.prompt_field is not None and config.response_field is not None:
        prompt = _text(row, config.prompt_field)
        response = _text(row, config.response_field)
        if not prompt.strip():
            return Reason.EMPTY
        if not response.strip():
            return Reason.EMPTY_ANSWER
        turn = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return _with_tools(turn, row, config)
    if config.conversations_field is not None:
        return _conversation(row, config, config.conversations_field, "from", "value")
    assert config.field is not None
    if config.format == "chat":
        return _conversation(row, config, config.field, "role", "content")
    text = _text(row, config.field)
    return text if text.strip() else Reason.EMPTY


def _with_tools(
    messages: list[dict[str, Any]], row: Mapping[str, Any], config: SourceConfig
) -> Messages | Conversation:
    if config.tools_field is None:
        return messages
    tools = row.get(config.tools_field)
    if tools is not None and not isinstance(tools, list):
        raise BadRecord(f"has a {_kind(tools)} in '{config.tools_field}', not a list of tools")
    for number, tool in enumerate(tools or [], start=1):
        if not isinstance(tool, Mapping):
            raise BadRecord(
                f"has a {_kind(tool)} as tool {number} of '{config.tools_field}', not an object"
            )
    return Conversation(messages, tools or None)


def _value(row: Mapping[str, Any], field: str) -> Any:
    if field not in row:
        names = [name.encode("utf-8", "replace").decode() for name in row]  # lone surrogates
        raise BadRecord(
            f"has no field '{field}'{did_you_mean(field, names)}; its fields are {', '.join(names)}"
        )
    return row[field]


def _text(row: Mapping[str, Any], field: str) -> str:
    value = _value(row, field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord(f"has a {_kind(value)} in '{field}', not a text")
    return value


def _conversation(
    row: Mapping[str, Any], config: SourceConfig, field: str, role_key: str, content_key: str
) -> Messages | Conversation | Reason:
    turns = _value(row, field)
    if turns is None:
        return Reason.EMPTY
    if not isinstance(turns, list):
        raise BadRecord(f"has a {_kind(turns)} in '{field}', not a list of messages")
    messages: list[dict[str, Any]] = []
    whole = config.tools_field is not None and role_key == "role"
    for number, turn in enumerate(turns, start=1):
        where = f"in '{field}', message {number}"
        message = _message(turn, where, role_key, content_key, whole=whole)
        if isinstance(message, Reason):
            return message
        messages.append(message)
    if not messages:
        return Reason.EMPTY
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        return Reason.NO_ANSWER
    if not any(map(has_answer, answers)):
        return Reason.EMPTY_ANSWER
    return _with_tools(messages, row, config)


def has_answer(message: Mapping[str, Any]) -> bool:
    """Whether a message is an assistant's that says something or calls a tool."""
    said = (message.get("content") or "").strip() or message.get("tool_calls")
    return message["role"] == "assistant" and bool(said)


def _message(
    turn: Any, where: str, role_key: str, content_key: str, *, whole: bool
) -> dict[str, Any] | Reason:
    """A message, with all its keys if `whole`; or why its conversation is left out."""
    if not isinstance(turn, Mapping):
        raise BadRecord(f"has, {where}, a {_kind(turn)}, not an object")
    role = turn.get(role_key)
    if not isinstance(role, str):
        raise BadRecord(f"has, {where}, no text '{role_key}'")
    role = role.strip().lower()
    if role_key == "from":
        role = _SHAREGPT_ROLES.get(role, role)
    calls = turn.get("tool_calls")
    if ((role in _TOOL_ROLES or calls) and not whole) or turn.get("function_call"):
        return Reason.TOOLS
    if role not in ROLES and role not in _TOOL_ROLES:
        return Reason.UNKNOWN_ROLE
    if calls and not isinstance(calls, list):
        raise BadRecord(f"has, {where}, a {_kind(calls)} as 'tool_calls', not a list")
    if calls and turn.get(content_key) is None:
        return {**turn, "role": role}
    content = message_text(turn, where, content_key)
    if content is None:
        return Reason.NOT_TEXT
    return {**(turn if whole else {}), "role": role, "content": content}


def message_text(turn: Mapping[str, Any], where: str, content_key: str) -> str | None:
    """A message's content: a text, or text parts joined; None where a part is no text.

    Raises BadRecord for an absent content or one of another type.
    """
    if content_key not in turn:
        raise BadRecord(f"has, {where}, no '{content_key}'")
    content = turn[content_key]
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRecord(f"has, {where}, a {_kind(content)} as '{content_key}', not a text")
    texts = [_part(part, where, content_key) for part in content]
    known = [text for text in texts if text is not None]
    return "".join(known) if len(known) == len(texts) else None


def _part(part: Any, where: str, content_key: str) -> str | None:
    """The text of one part of a content; None for a part of another kind."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise BadRecord(f"has, {where}, a {_kind(part)} as a part of '{content_key}'")
    text, kind = part.get("text"), part.get("type", "text")
    if kind is not None and not isinstance(kind, str):
        raise BadRecord(f"has, {where}, a {_kind(kind)} as the 'type' of a part of '{content_key}'")
    if kind not in _TEXT_PARTS:
        return None
    if not isinstance(text, str):
        raise BadRecord(f"has, {where}, a text part without 'text' in '{content_key}'")
    return text


def _kind(value: Any) -> str:
    names = {dict: "table", list: "list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number" if isinstance(value, int | float) else "value")
