"""Conversations by a checkpoint's own template, against mlx-lm, transformers and data/chat.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FORGETTING, MARKED, TOOLS, TOOLS_AS_TEXT, TRIMMING
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_as_mlx_lm
from mlx_lm.tuner.datasets import ChatDataset

from mobilemoe_mlx.data.chat import encode_conversation
from mobilemoe_mlx.data.conversation_encoder import ConversationEncoder, LossOn
from mobilemoe_mlx.data.mixture import Document
from mobilemoe_mlx.data.records import Conversation
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer import CHAT_TEMPLATE, EOT, ChatTokenizer, load_tokenizer


def with_template(folder: Path, template: str | None) -> ChatTokenizer:
    tokenizer = load_tokenizer(folder)
    tokenizer._tokenizer.chat_template = template
    return ChatTokenizer(tokenizer._tokenizer)


def mlx_lm_tokenizer(folder: Path, template: str) -> TokenizerWrapper:
    tokenizer = load_as_mlx_lm(folder)
    tokenizer._tokenizer.chat_template = template
    return tokenizer


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def encoded(
    tokenizer: ChatTokenizer, record: Conversation, loss_on: LossOn = "answers"
) -> Document:
    document = ConversationEncoder(tokenizer, loss_on)(record)
    assert isinstance(document, Document) and len(document.tokens) == len(document.loss)
    return document


def learnt(tokenizer: ChatTokenizer, document: Document) -> str:
    pairs = zip(document.tokens, document.loss, strict=True)
    return str(tokenizer.decode([token for token, counts in pairs if counts]))


CONVERSATIONS = [
    [turn("user", "What does `dedent` do?"), turn("assistant", "It removes indentation.")],
    [turn("system", "Be brief."), turn("user", "Hi 🎉"), turn("assistant", "  Hello\n\n")],
    [turn("user", "1"), turn("assistant", "2"), turn("user", "\n3\t"), turn("assistant", "")],
    [turn("assistant", "first"), turn("assistant", "second"), turn("user", "é")],
    [turn("user", "<|eot|>"), turn("assistant", "<|header_start|>assistant<|header_end|>\n\n")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_published_template_is_the_published_format(
    tokenizer_folder: Path, messages: list[dict[str, Any]]
) -> None:
    tokenizer = with_template(tokenizer_folder, CHAT_TEMPLATE)
    assert encoded(tokenizer, Conversation(messages)) == encode_conversation(tokenizer, messages)


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_without_a_template_it_is_the_published_format(
    tokenizer_folder: Path, messages: list[dict[str, Any]]
) -> None:
    bare = with_template(tokenizer_folder, None)
    assert not ConversationEncoder(bare, "answers").has_template
    assert encoded(bare, Conversation(messages)) == encode_conversation(bare, messages)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRIMMING, TOOLS])
@pytest.mark.parametrize("messages", CONVERSATIONS[:2])
def test_tokens_and_mask_of_one_answer_are_those_of_mlx_lm(
    tokenizer_folder: Path, template: str, messages: list[dict[str, Any]]
) -> None:
    """`mask_prompt` masks what comes before an offset."""
    theirs = ChatDataset([], mlx_lm_tokenizer(tokenizer_folder, template), mask_prompt=True)
    tokens, offset = theirs.process({"messages": messages})
    ours = encoded(with_template(tokenizer_folder, template), Conversation(messages))
    assert ours.tokens == tokens
    assert ours.loss == [False] * offset + [True] * (len(tokens) - offset)


def test_all_tokens_may_be_learnt(tokenizer_folder: Path) -> None:
    for template in (CHAT_TEMPLATE, FORGETTING, None):
        tokenizer = with_template(tokenizer_folder, template)
        document = encoded(tokenizer, Conversation(CONVERSATIONS[0]), "all")
        assert document.tokens == encoded(tokenizer, Conversation(CONVERSATIONS[0])).tokens
        assert document.loss == [False] + [True] * (len(document.tokens) - 1)


SEVERAL = [turn("user", "a?"), turn("assistant", "b."), turn("user", "c?"), turn("assistant", "d.")]


def test_every_answer_is_learnt_with_the_end_of_its_turn(tokenizer_folder: Path) -> None:
    for template in (CHAT_TEMPLATE, TOOLS, MARKED):
        tokenizer = with_template(tokenizer_folder, template)
        document = encoded(tokenizer, Conversation(SEVERAL))
        assert learnt(tokenizer, document) == f"b.{EOT}d.{EOT}"


def test_marked_answers_are_those_of_transformers(tokenizer_folder: Path) -> None:
    tokenizer = with_template(tokenizer_folder, MARKED)
    for messages in (SEVERAL, CONVERSATIONS[0]):
        theirs = tokenizer._tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ours = encoded(tokenizer, Conversation(messages))
        assert ours.tokens == theirs["input_ids"]
        assert [int(counts) for counts in ours.loss] == theirs["assistant_masks"]


def test_a_prompt_is_what_a_chat_gives_the_model(tokenizer_folder: Path) -> None:
    for template in (CHAT_TEMPLATE, TRIMMING, TOOLS):
        tokenizer = with_template(tokenizer_folder, template)
        document = encoded(tokenizer, Conversation(SEVERAL))
        prompt = tokenizer.apply_chat_template(SEVERAL[:3], add_generation_prompt=True)
        assert document.tokens[: len(prompt)] == prompt
        assert not document.loss[len(prompt) - 1] and document.loss[len(prompt)]


def test_answers_that_a_template_rewrites_cannot_be_found(tokenizer_folder: Path) -> None:
    encode = ConversationEncoder(with_template(tokenizer_folder, FORGETTING), "answers")
    thinking = [turn("user", "a?"), turn("assistant", "<think>hm</think>b."), *SEVERAL[2:]]
    with pytest.raises(UserError, match=r"message 2.*generation.*--loss-on all") as error:
        encode(Conversation(thinking))
    assert "\n" not in str(error.value)
    document = encode(Conversation(thinking[:2]))
    assert isinstance(document, Document) and any(document.loss)


def weather(arguments: Any) -> Conversation:
    function = {"name": "weather", "arguments": arguments}
    return Conversation(
        [
            turn("user", "Rain in Rome?"),
            {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
            turn("tool", "no <|eot|>"),
            turn("assistant", "No."),
        ],
        [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    )


ARGUMENTS = {"city": "Rome", "days": 1}


def test_tool_calls_are_learnt_and_results_are_not(tokenizer_folder: Path) -> None:
    tokenizer = with_template(tokenizer_folder, TOOLS)
    document = encoded(tokenizer, weather(ARGUMENTS))
    call = '\n<call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 1}}\n</call>'
    assert learnt(tokenizer, document) == f"{call}{EOT}No.{EOT}"
    text = tokenizer.decode(document.tokens)
    assert '"parameters": {}' in text and "<result>\nno " in text
    assert document.tokens.count(tokenizer.get_vocab()[EOT]) == 5  # not the one in the result


def test_tool_calls_have_the_tokens_of_mlx_lm(tokenizer_folder: Path) -> None:
    record = weather(ARGUMENTS)
    record.messages[2]["content"] = "no"
    theirs = ChatDataset([], mlx_lm_tokenizer(tokenizer_folder, TOOLS), mask_prompt=True)
    tokens, offset = theirs.process({"messages": record.messages, "tools": record.tools})
    ours = encoded(with_template(tokenizer_folder, TOOLS), record)
    assert ours.tokens == tokens
    assert ours.loss[offset:] == [True] * (len(tokens) - offset)  # the last answer
    assert not ours.loss[offset - 1]


@pytest.mark.parametrize("template", [TOOLS, TOOLS_AS_TEXT])
def test_arguments_may_be_an_object_or_its_json(tokenizer_folder: Path, template: str) -> None:
    """Whichever the template asks for: otherwise it would quote JSON twice, or print Python."""
    tokenizer = with_template(tokenizer_folder, template)
    as_object = encoded(tokenizer, weather(ARGUMENTS))
    assert '"arguments": {"city": "Rome", "days": 1}}' in learnt(tokenizer, as_object)
    assert encoded(tokenizer, weather(json.dumps(ARGUMENTS))) == as_object


def test_a_template_without_tools_leaves_them_out(tokenizer_folder: Path) -> None:
    for template in (CHAT_TEMPLATE, None):
        encode = ConversationEncoder(with_template(tokenizer_folder, template), "answers")
        assert not encode.writes_tools
        assert encode(weather(ARGUMENTS)) is Reason.TOOLS
        assert encode(Conversation(SEVERAL, [{"type": "function"}])) is Reason.TOOLS


@pytest.mark.parametrize(
    ("arguments", "calls", "said"),
    [
        ("{not json", None, "as JSON, not '{not json'"),
        (None, [{"name": "weather"}], "Tool call 1 is not of the form"),
        (None, ["weather"], "Tool call 1 is not of the form"),
    ],
)
def test_calls_of_no_known_form_are_told(
    tokenizer_folder: Path, arguments: Any, calls: Any, said: str
) -> None:
    record = weather(arguments)
    if calls is not None:
        record.messages[1]["tool_calls"] = calls
    with pytest.raises(UserError, match=said.replace("{", r"\{")):
        ConversationEncoder(with_template(tokenizer_folder, TOOLS), "answers")(record)
