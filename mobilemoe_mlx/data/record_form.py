"""Which form a file's records have, seen from its first one: mlx-lm's three, and ShareGPT's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mobilemoe_mlx.data.source_config import Format
from mobilemoe_mlx.errors import UserError

_SHAREGPT = "conversations"


@dataclass(frozen=True)
class Features:
    """The names that records give to what is in them, as mlx-lm calls these; empty: the usual."""

    prompt: str = ""
    completion: str = ""
    chat: str = ""
    text: str = ""


@dataclass(frozen=True)
class RecordForm:
    """A form of records: its name for people, its format, and the fields as a source names them."""

    name: str
    format: Format
    fields: dict[str, str]


def record_form(row: Mapping[str, Any], features: Features, where: str) -> RecordForm:
    """The form of the record `row`: what `features` names, else what its keys show.

    As in mlx-lm, `prompt` with `completion` comes before `messages`, and that before `text`; then
    ShareGPT's `conversations`. Raises UserError, beginning with the record's place `where`.
    """
    prompt, completion = features.prompt or "prompt", features.completion or "completion"
    chat, text = features.chat or "messages", features.text or "text"
    turn = {"prompt_field": prompt, "response_field": completion}
    known = {
        "completions": RecordForm("completions", "chat", turn),
        "chat": RecordForm("chat", "chat", {"field": chat}),
        "text": RecordForm("text", "text", {"field": text}),
    }
    if features.prompt or features.completion:
        asked = ["completions"]
    else:
        asked = [name for name in ("chat", "text") if getattr(features, name)]
    for name in asked or known:
        if all(field in row for field in known[name].fields.values()):
            return known[name]
    if not asked and _SHAREGPT in row:
        return RecordForm("ShareGPT", "chat", {"conversations_field": _SHAREGPT})
    wanted = [
        " and ".join(f"'{f}'" for f in known[name].fields.values()) for name in asked or known
    ]
    raise UserError(
        f"{where} has no {' or '.join(wanted)}; its fields are {', '.join(map(str, row))}: say "
        "which of them it is with `--set data.chat_feature=NAME`, `data.prompt_feature` and "
        "`data.completion_feature`, or `data.text_feature`."
    )
