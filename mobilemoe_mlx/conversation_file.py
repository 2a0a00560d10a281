"""A conversation as a JSON file: an object with "messages", or the list of messages alone.

One object per line of such a file, without its line breaks, is what training reads as chats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

Messages = list[dict[str, str]]

_ROLES = ("system", "user", "assistant")


def save(path: str | Path, messages: Sequence[dict[str, str]]) -> Path:
    """Write `messages` to `path`, whole or not at all; -> the path, `~` expanded.

    Raises UserError when the file cannot be written.
    """
    target = files.user_path(path)
    try:
        files.write_json(target, {"messages": list(messages)})
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from None
    return target


def load(path: str | Path) -> Messages:
    """The messages in `path`: a system message or none, then a user's and the assistant's in turn.

    Raises UserError saying what is wrong with the file, or with which message.
    """
    source = files.user_path(path)
    content = files.read_json(source)
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list):
        raise UserError(f'{source} has no list of "messages".')
    read = [_message(message, f"{source}: message {n}") for n, message in enumerate(messages, 1)]
    turns = read[1:] if read and read[0]["role"] == "system" else read
    for index, message in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise UserError(
                f"{source}: message {index + 1 + len(read) - len(turns)} is of the "
                f"{message['role']}, where one of the {expected} belongs."
            )
    if len(turns) % 2:
        raise UserError(f"{source} ends with a user's message, without an answer to it.")
    return read


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise UserError(f"{where} is not an object with role and content.")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise UserError(f"{where} has the role {role!r}; known are {', '.join(_ROLES)}.")
    if not isinstance(content, str):
        raise UserError(f"{where} has no text as its content.")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where} is not Unicode text: it has lone surrogates.") from None
    return {"role": role, "content": content}
