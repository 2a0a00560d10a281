"""Conversations as tokens, with the loss on the assistant's answers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mobilemoe_mlx.chat_format import (
    BEGIN_OF_TEXT,
    HEADER_END,
    HEADER_START,
    encode_text,
)
from mobilemoe_mlx.data.records import ROLES
from mobilemoe_mlx.end_tokens import EOT
from mobilemoe_mlx.errors import UserError, did_you_mean

if TYPE_CHECKING:  # transformers is slow to import, and a chat needs it not
    from mobilemoe_mlx.prompt_tokenizer import PromptTokenizer
    from mobilemoe_mlx.tokenizer import AnyTokenizer, ChatTokenizer


def encode_conversation(
    tokenizer: AnyTokenizer | PromptTokenizer,
    messages: Sequence[Mapping[str, Any]],
    where: str = "The conversation",
) -> tuple[list[int], list[bool]]:
    """Return the token ids of `messages` in the published chat format, and which carry loss.

    Both lists have an entry for each token. Loss is on each assistant's text and closing <|eot|>,
    and nowhere else; an empty answer (white space at most) carries none. A message's text never
    becomes a control token. It is encoded apart from the blank line before it, as it is when the
    model writes it after a generation prompt.

    Raises UserError, naming the record as `where`, for an unknown role, a content that is not text,
    a conversation without an assistant's turn, or a tokenizer without the control tokens.
    """
    _check_messages(messages, where)
    bos, header_start, header_end, eot = _control_ids(tokenizer)
    blank_line = encode_text(tokenizer, "\n\n")
    tokens, loss = [bos], [False]
    for message in messages:
        role, content = message["role"], message["content"]
        header = [header_start, *encode_text(tokenizer, role), header_end, *blank_line]
        body = [*encode_text(tokenizer, content), eot]
        tokens += header + body
        learnt = role == "assistant" and bool(content.strip())
        loss += [False] * len(header) + [learnt] * len(body)
    return tokens, loss


def template_difference(tokenizer: ChatTokenizer | PromptTokenizer) -> str | None:
    """Where the tokenizer's chat template first differs from the format of training; None: nowhere.

    Asked with a short conversation, with a system message and without: a template may write one of
    its own. What it refuses has no answer either; it says so when it is used.
    """
    messages = [
        {"role": "user", "content": "Hello, who are you?"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": "Thanks."},
    ]
    for sample in ([{"role": "system", "content": "Be brief."}, *messages], messages):
        try:
            theirs = tokenizer.apply_chat_template(sample, add_generation_prompt=True)
        except UserError:
            continue
        try:
            ours = encode_conversation(tokenizer, sample)[0]
        except UserError as error:
            return str(error)
        _, header_start, header_end, _ = _control_ids(tokenizer)
        answer = encode_text(tokenizer, "assistant")
        ours += [header_start, *answer, header_end, *encode_text(tokenizer, "\n\n")]
        if (difference := _first_difference(tokenizer, theirs, ours)) is not None:
            return difference
    return None


def _first_difference(
    tokenizer: ChatTokenizer | PromptTokenizer, theirs: list[int], ours: list[int]
) -> str | None:
    if theirs == ours:
        return None
    pairs = enumerate(zip(theirs, ours, strict=False))
    place = next((i for i, (x, y) in pairs if x != y), min(len(theirs), len(ours)))

    def words(tokens: list[int]) -> str:
        return repr(tokenizer.decode(tokens)) if tokens else "nothing"

    before = f"after {words(ours[max(0, place - 16) : place])}" if place else "at its beginning"
    return (
        f"{before} the template writes {words(theirs[place : place + 8])}, and training "
        f"{words(ours[place : place + 8])}"
    )


def _check_messages(messages: Sequence[Mapping[str, Any]], where: str) -> None:
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise UserError(f"{where} has no list of messages, but a {type(messages).__name__}.")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise UserError(f"{where}: message {number} is not an object with role and content.")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            hint = did_you_mean(role, ROLES) if isinstance(role, str) else ""
            raise UserError(
                f"{where}: message {number} has the role {role!r}{hint}; "
                f"known are {', '.join(ROLES)}."
            )
        if not isinstance(content, str):
            raise UserError(
                f"{where}: the content of message {number} is {type(content).__name__}, not text."
            )
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{where} has no assistant turn, so there is nothing to learn from it.")


def _control_ids(tokenizer: AnyTokenizer | PromptTokenizer) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    names = (BEGIN_OF_TEXT, HEADER_START, HEADER_END, EOT)
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise UserError(
            f"The tokenizer lacks the chat format's tokens {', '.join(missing)}; "
            "use the one of a MobileMoE checkpoint, or one of `mobilemoe tokenizer train`."
        )
    return [vocabulary[name] for name in names]
