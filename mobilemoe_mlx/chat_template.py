"""A conversation's token ids by a chat template, in which the contents of messages stay text.

A template gives one string, in which "<|eot|>" of the template and "<|eot|>" typed by a user look
alike. So the template is given contents with marks that no text has: one in place of each control
token's name, and one at each end of a content. Where they come out says what is text, and contents
are encoded apart from the template, as `data.chat` encodes them in training.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from jinja2.exceptions import TemplateError

from mobilemoe_mlx.errors import UserError

Message = Mapping[str, Any]
Others = Mapping[str, Any]  # what a template is given besides messages, as `tools`
Render = Callable[[Sequence[Message], Others], str]
RenderGeneration = Callable[[Sequence[Message], Others], tuple[str, list[tuple[int, int]]]]
"""Gives the text, and the start and end of each part of it that a template marks as an answer."""
Encode = Callable[[str], list[int]]
T = TypeVar("T")

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
    names = _Names(control)
    (others,) = _mapped([others], names.hide)
    hidden = _bounds(render, list(_mapped(messages, names.hide)), others)
    parts = _parts(render_safely(render, hidden, others))
    return [token for part in parts for token in names.tokens(*part, encode)]


def answer_tokens(
    render: Render,
    render_generation: RenderGeneration | None,
    messages: Sequence[Message],
    others: Others,
    control: Mapping[str, int],
    encode: Encode,
) -> tuple[list[int], list[int]]:
    """A conversation's token ids and, for each, the message whose answer it is part of, or -1.

    An answer is what an assistant's message adds to the text that asks for it, so the tokens before
    it are those that a chat gives the model. `render` takes "add_generation_prompt" among the
    others. `render_generation` is given for a template that marks answers itself, by
    `{% generation %}` tags. Raises UserError for whatever `render` raises, and where the template
    does not write a conversation message by message.
    """
    names = _Names(control)
    (others,) = _mapped([others], names.hide)
    hidden = _bounds(render, list(_mapped(messages, names.hide)), others)
    if render_generation is None:
        text = render_safely(render, hidden, others)
        spans = _answer_spans(render, hidden, others, _plain(text))
    else:
        text, spans = _generation_spans(render_generation, hidden, others)
    tokens: list[int] = []
    owners: list[int] = []
    for part, is_content, owner in _cut(_parts(text), spans):
        tokens += names.tokens(part, is_content, encode)
        owners += [owner] * (len(tokens) - len(owners))
    return tokens, owners


class _Names:
    """Control tokens' names: hidden in contents, and found in what a template writes."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control
        self._names = sorted(control, key=lambda name: (-len(name), name))
        self._pattern = re.compile("|".join(map(re.escape, self._names)) or r"(?!)")

    def hide(self, text: str) -> str:
        text = _MARKS.sub("\ufffd", text)
        return self._pattern.sub(lambda m: f"{_NAME}{self._names.index(m[0])}{_NAME}", text)

    def _show(self, text: str) -> str:
        return re.sub(f"{_NAME}(\\d+){_NAME}", lambda m: self._names[int(m[1])], text)

    def tokens(self, part: str, is_content: bool, encode: Encode) -> list[int]:
        """The ids of a part of a rendered text; a content has no control tokens."""
        if is_content:
            return encode(self._show(part))
        tokens: list[int] = []
        position = 0
        for found in self._pattern.finditer(part):
            tokens += encode(self._show(part[position : found.start()]))
            tokens.append(self._control[found[0]])
            position = found.end()
        return tokens + encode(self._show(part[position:]))


_Span = tuple[int, int, int]  # start and end in a rendered text without bounds, message


def _answer_spans(
    render: Render, messages: list[Message], others: Others, whole: str
) -> list[_Span]:
    """Where the assistant's messages stand in `whole`; the text before each asks for an answer."""

    def text(count: int, **more: bool) -> str:
        return _plain(render_safely(render, messages[:count], {**others, **more}))

    spans = []
    for number, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        so_far = text(number + 1)
        if number:
            prompt = text(number, add_generation_prompt=True)
        else:  # a template may refuse a conversation without messages
            asking = text(1, add_generation_prompt=True).removeprefix(so_far)
            start = so_far.find(asking)
            prompt = so_far[: start + len(asking)] if start >= 0 else asking
        if not (so_far.startswith(prompt) and whole.startswith(so_far)):
            raise UserError(
                f"The chat template writes message {number + 1}, an answer, in another way than it "
                "asks for one, or in another way once messages follow, so what to learn cannot be "
                "found. Mark answers in the template with {% generation %} and "
                "{% endgeneration %}, give conversations with one answer each, or learn every "
                "token (--loss-on all)."
            )
        spans.append((len(prompt), len(so_far), number))
    return spans


def _generation_spans(
    render: RenderGeneration, messages: list[Message], others: Others
) -> tuple[str, list[_Span]]:
    """The text, and where the answers stand in it that the template marks."""
    text, marked = _safely(render, messages, others)
    answers = [n for n, message in enumerate(messages) if message.get("role") == "assistant"]
    if len(marked) != len(answers):
        raise UserError(
            f"The chat template marks {len(marked)} answers with {{% generation %}}, and the "
            f"conversation has {len(answers)}: put the tags around each answer in it, or learn "
            "every token (--loss-on all)."
        )
    return text, [
        (len(_plain(text[:start])), len(_plain(text[:end])), number)
        for (start, end), number in zip(marked, answers, strict=True)
    ]


def _cut(
    parts: Iterable[tuple[str, bool]], spans: Sequence[_Span]
) -> Iterator[tuple[str, bool, int]]:
    """Cut parts at the ends of spans; yields (part, whether it is a content, its message or -1)."""
    edges = sorted({edge for start, end, _ in spans for edge in (start, end)})
    position = 0
    for part, is_content in parts:
        inside = [edge - position for edge in edges if 0 < edge - position < len(part)]
        for start, end in itertools.pairwise((0, *inside, len(part))):
            place = position + start
            owner = next((n for first, last, n in spans if first <= place < last), -1)
            yield part[start:end], is_content, owner
        position += len(part)


def render_safely(render: Render, messages: Sequence[Message], others: Others) -> str:
    """What `render` gives; raises UserError, one sentence, for whatever a template may raise."""
    return _safely(render, messages, others)


def _safely(
    render: Callable[[Sequence[Message], Others], T], messages: Sequence[Message], others: Others
) -> T:
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
        if _plain(text) == plain:
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
        yield _plain(inner), piece.startswith(_BEGIN)


def _plain(text: str) -> str:
    """A rendered text without the marks at the ends of contents."""
    return re.sub(f"[{_BEGIN}{_END}]", "", text)
