"""The Swift package's chat format against transformers' templates and this package's tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from template_samples import CONTENTS, SNIPPETS, WHOLE

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer import ChatTokenizer, load_tokenizer


def conversations() -> list[list[dict[str, str]]]:
    def message(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    chats = []
    for content in CONTENTS:
        user = message("user", content)
        chats.append([user])
        chats.append([message("system", content), user, message("assistant", f"{content}ok"), user])
        chats.append([user, message("assistant", content), message("tool", content)])
    return chats


def outcome(tokenizer: ChatTokenizer, messages: list[dict[str, str]]) -> dict[str, Any]:
    """What transformers renders and which tokens these are here, or why not."""
    case: dict[str, Any] = {"messages": messages}
    try:
        case["text"] = tokenizer._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        with pytest.raises(UserError) as refused:
            tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        case["refused"] = str(refused.value) if type(error).__name__ == "TemplateError" else None
        return case
    case["ids"] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return case


def test_chats(tmp_path: Path, tokenizer_folder: Path, swift_test: Callable[..., None]) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    chats = conversations()
    cases = []
    for number, template in enumerate([*WHOLE.values(), *SNIPPETS]):
        tokenizer.chat_template = template
        some = chats if number < len(WHOLE) else chats[1:2]
        cases.append({"template": template, "chats": [outcome(tokenizer, chat) for chat in some]})
    refused = [c for case in cases for c in case["chats"] if "text" not in c]
    assert sum(len(case["chats"]) for case in cases) - len(refused) > 400
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((tokenizer_folder / name).read_bytes())
    content = json.dumps(cases, ensure_ascii=False)
    (tmp_path / "cases.json").write_text(content, encoding="utf-8")
    swift_test("ChatCases", MOBILEMOE_CHAT_CASES=str(tmp_path))
