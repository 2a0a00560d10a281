"""Records: the content of a row, or why it has none; wrong types are named."""

from __future__ import annotations

from typing import Any

import pytest

from mobilemoe_mlx.data.json_lines import BadRecord
from mobilemoe_mlx.data.records import read_record
from mobilemoe_mlx.data.source_config import Format, SourceConfig
from mobilemoe_mlx.data.statistics import Reason


def read(row: dict[str, Any], format: Format = "chat", **keys: str) -> Any:
    table = {"name": "s", "weight": 1, "files": ["a.jsonl"], **keys}
    return read_record(row, SourceConfig.from_dict(table, format), lambda: "line 7 of a.jsonl")


def turn(role: Any, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, ANSWER = turn("user", "q"), turn("assistant", "ok")
GOOD = [USER, ANSWER]
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (GOOD, GOOD),
        ([turn("User", "q"), turn(" ASSISTANT ", "ok")], GOOD),
        ([turn("user", "q", name="bob", tool_calls=None), turn("assistant", "ok", id=3)], GOOD),
        ([turn("user", [{"type": "text", "text": "q"}]), ANSWER], GOOD),
        ([turn("user", ["q"]), turn("assistant", [{"text": "o"}, {"text": "k"}])], GOOD),
        ([turn("user", [{"type": "input_text", "text": "q", "image": None}]), ANSWER], GOOD),
        ([turn("user", None), ANSWER], [turn("user", ""), ANSWER]),
        # One empty answer among others stays; encode_conversation gives it no loss.
        ([turn("assistant", ""), *GOOD], [turn("assistant", ""), *GOOD]),
        ([USER], Reason.NO_ANSWER),
        ([turn("system", "s")], Reason.NO_ANSWER),
        ([], Reason.EMPTY),
        (None, Reason.EMPTY),
        ([USER, turn("assistant", "")], Reason.EMPTY_ANSWER),
        ([USER, turn("assistant", " \n\t")], Reason.EMPTY_ANSWER),
        ([USER, turn("assistant", None)], Reason.EMPTY_ANSWER),
        ([USER, turn("assistant", [])], Reason.EMPTY_ANSWER),
        ([*GOOD, turn("tool", "{}")], Reason.TOOLS),
        ([*GOOD, turn("Function", "{}")], Reason.TOOLS),
        ([USER, turn("assistant", None, tool_calls=[{"id": 1}]), ANSWER], Reason.TOOLS),
        ([USER, turn("assistant", "x", function_call={"name": "f"})], Reason.TOOLS),
        ([*GOOD, turn("critic", "x")], Reason.UNKNOWN_ROLE),
        ([turn("user", [{"type": "text", "text": "see"}, IMAGE]), ANSWER], Reason.NOT_TEXT),
        ([USER, turn("assistant", [{"type": "audio"}])], Reason.NOT_TEXT),
    ],
)
def test_conversations(messages: Any, expected: Any) -> None:
    assert read({"messages": messages}) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"message": GOOD}, "has no field 'messages' (did you mean 'message'?)"),
        ({"messages": "hi"}, "has a text in 'messages', not a list of messages"),
        ({"messages": {"role": "user"}}, "has a table in 'messages', not a list"),
        ({"messages": ["hi"]}, "has, in 'messages', message 1, a text, not an object"),
        ({"messages": [USER, {"content": "x"}]}, "message 2, no text 'role'"),
        ({"messages": [turn(1, "x")]}, "message 1, no text 'role'"),
        ({"messages": [{"role": "user"}]}, "message 1, no 'content'"),
        ({"messages": [turn("user", 3)]}, "message 1, a number as 'content'"),
        ({"messages": [turn("user", True)]}, "message 1, a true or false as 'content'"),
        ({"messages": [turn("user", {"text": "x"})]}, "message 1, a table as 'content'"),
        ({"messages": [turn("user", [3])]}, "a number as a part of 'content'"),
        ({"messages": [turn("user", [{"type": "text"}])]}, "a text part without 'text'"),
        ({"messages": [turn("user", [{"type": ["text"]}])]}, "a list as the 'type' of a part"),
        ({"messages": [turn("user", [{"type": {}}])]}, "a table as the 'type' of a part"),
    ],
)
def test_bad_conversations_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecord) as error:
        read(row)
    assert str(error.value).startswith("line 7 of a.jsonl has") and message in str(error.value)


def test_sharegpt_roles_and_their_case() -> None:
    turns = [{"from": "Human", "value": "q"}, {"from": "GPT", "value": ["o", {"text": "k"}]}]
    assert read({"c": turns}, conversations_field="c") == GOOD
    turns.append({"from": "observation", "value": "x"})
    assert read({"c": turns}, conversations_field="c") is Reason.TOOLS
    with pytest.raises(BadRecord, match="message 1, no text 'from'"):
        read({"c": GOOD}, conversations_field="c")


@pytest.mark.parametrize(
    ("q", "a", "expected"),
    [
        ("q", "ok", GOOD),
        ("q", "2024-01-01", [USER, turn("assistant", "2024-01-01")]),
        ("", "ok", Reason.EMPTY),
        (None, "ok", Reason.EMPTY),
        ("q", " ", Reason.EMPTY_ANSWER),
        ("q", None, Reason.EMPTY_ANSWER),
    ],
)
def test_prompt_and_response(q: Any, a: Any, expected: Any) -> None:
    assert read({"q": q, "a": a}, prompt_field="q", response_field="a") == expected


@pytest.mark.parametrize(("q", "a"), [(1, "x"), ("x", 4), ("x", ["y"]), ("x", False)])
def test_prompt_and_response_of_another_type(q: Any, a: Any) -> None:
    with pytest.raises(BadRecord, match=r"line 7 .*not a text"):
        read({"q": q, "a": a}, prompt_field="q", response_field="a")


def test_texts() -> None:
    assert read({"text": " 007 ", "other": 1}, "text") == " 007 "
    assert read({"text": " \n"}, "text") is read({"text": None}, "text") is Reason.EMPTY
    for value in (7, 1.5, ["x"], {"text": "x"}, True):
        with pytest.raises(BadRecord, match="in 'text', not a text"):
            read({"text": value}, "text")


def test_a_field_name_that_is_no_text_can_be_told() -> None:
    config = SourceConfig.from_dict({"name": "s", "weight": 1, "files": ["a"]}, "text")
    with pytest.raises(BadRecord) as error:
        read_record({"\ud800x": "a"}, config, lambda: "here")
    assert str(error.value).encode() == b"here has no field 'text'; its fields are ?x"
