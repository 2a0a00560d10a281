"""A conversation's token ids by a chat template, in which the contents of messages stay text.

A template gives one string, in which "<|eot|>" of the template and "<|eot|>" typed by a user look
alike. So the template is given contents with marks that no text has: one in place of each control
token's name, and one at each end of a content. Where they come out says what is text, and contents
are encoded apart from the template, as `data.chat` encodes them in training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from mobilemoe_mlx.errors import UserError

Message = Mapping[str, Any]
Others = Mapping[str, Any]  # what a template is given besides messages, as `tools`
Render = Callable[[Sequence[Message], Others], str]
Encode = Callable[[str], list[int]]

# Unicode's noncharacters, which are never text: begin and end of a content, and a control token's
# name. The template and the conversation must not have them.
_BEGIN, _END, _NAME = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile("[\ufdd0-\ufdd2]")


def chat_tokens(
    render: Render,
    messages: Sequence[Message],
    others: Others,
    control: Mapping[str, int],
    encode: Encode,
) -> list[int]:
    """The token ids of `messages` and `others` as `render` writes them.

    `control`: control token -> id. `encode`: plain text -> ids. Control tokens of the template
    become their ids, all else is text. Raises UserError for whatever `render` raises.
    """
    names = sorted(control, key=lambda name: (-len(name), name))
    pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def hide(text: str) -> str:
        text = _MARKS.sub("\ufffd", text)
        return pattern.sub(lambda m: f"{_NAME}{names.index(m[0])}{_NAME}", text)

    def show(text: str) -> str:
        return re.sub(f"{_NAME}(\\d+){_NAME}", lambda m: names[int(m[1])], text)

    (others,) = _mapped([others], hide)
    hidden = _bounds(render, list(_mapped(messages, hide)), others)
    tokens: list[int] = []
    for part, is_content in _parts(render_safely(render, hidden, others)):
        if is_content:
            tokens += encode(show(part))
            continue
        position = 0
        for found in pattern.finditer(part):
            tokens += encode(show(part[position : found.start()]))
            tokens.append(control[found[0]])
            position = found.end()
        tokens += encode(show(part[position:]))
    return tokens


def render_safely(render: Render, messages: Sequence[Message], others: Others) -> str:
    """What `render` gives; raises UserError, one sentence, for whatever a template may raise."""
    try:
        return render(messages, others)
    except UserError:
        raise
    except Exception as error:  # a template is a program, and can fail as any program can
        what = " ".join(str(error).split()) or "no reason given"
        if type(error) is TemplateError:  # what a template raises of its own will
            raise UserError(f"The chat template refuses this conversation: {what}.") from error
        kind = type(error).__name__
        raise UserError(
            f"The chat template fails on this conversation: {kind}: {what}. It is the checkpoint's "
            "(chat_template in tokenizer_config.json, or chat_template.jinja)."
        ) from error


def _bounds(render: Render, messages: list[Message], others: Others) -> list[Message]:
    """`messages` with marks at the ends of contents, if they leave the rest of the text as it is.

    A template may trim contents: marks are then put inside their outer blanks. One that looks at
    contents in other ways is given them without marks.
    """
    plain = render_safely(render, messages, others)
    for begin_end in (_outside, _inside):
        marked = [_with_contents(message, begin_end) for message in messages]
        try:
            text = render(marked, others)
        except Exception:  # a template that looks at contents: those without marks it took
            continue
        if re.sub(f"[{_BEGIN}{_END}]", "", text) == plain:
            return marked
    return messages


def _outside(text: str) -> str:
    return f"{_BEGIN}{text}{_END}"


def _inside(text: str) -> str:
    inner = text.strip()
    before = text[: len(text) - len(text.lstrip())] if inner else ""
    return f"{before}{_BEGIN}{inner}{_END}{text[len(before) + len(inner) :]}"


def _with_contents(message: Message, change: Callable[[str], str]) -> Message:
    """`message` with its content changed: a text, or the texts of its parts."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    if isinstance(content, list):
        parts = [
            {**part, "text": change(part["text"])}
            if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
        return {**message, "content": parts}
    return message


def _mapped(values: Iterable[Any], change: Callable[[str], str]) -> Iterator[Any]:
    """`values` with every string in them changed, however deep it lies; keys stay."""
    for value in values:
        if isinstance(value, str):
            yield change(value)
        elif isinstance(value, Mapping):
            yield dict(zip(value, _mapped(value.values(), change), strict=True))
        elif isinstance(value, list | tuple):
            yield list(_mapped(value, change))
        else:
            yield value


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """(Part of a rendered text, whether it is a content), in order."""
    for piece in re.split(f"({_BEGIN}[^{_BEGIN}{_END}]*{_END})", text):
        inner = piece.removeprefix(_BEGIN).removesuffix(_END)
        yield re.sub(f"[{_BEGIN}{_END}]", "", inner), piece.startswith(_BEGIN)
