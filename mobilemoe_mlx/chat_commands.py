"""What can be typed in a chat besides messages."""

from __future__ import annotations

from typing import NamedTuple

from mobilemoe_mlx.errors import did_you_mean

# Command -> what follows it; a line is a command only in just this form.
_ARGUMENTS = {
    "/reset": None,
    "/context": None,
    "/exit": None,
    "/help": None,
    "/save": "FILE",
    "/load": "FILE",
    "/send": "TEXT",
}

HELP = (
    "/reset forgets the conversation, /context says how much room is left, /save FILE and "
    "/load FILE keep and fetch a conversation, /send TEXT sends any text, /exit (or end of input) "
    "leaves, /help says this, Ctrl-C stops an answer. All other lines are sent, also those that "
    "begin with /."
)


class Command(NamedTuple):
    """One of the words in HELP, and the text after it."""

    name: str
    argument: str


def parse(line: str) -> Command | None:
    """The command that `line` is; None for a text to send.

    `/exit` alone is a command, `/exit 1 means what?` is not; `/save` and `/load` always are.
    """
    name, argument, *_ = [*line.split(maxsplit=1), "", ""]
    argument = argument.strip()
    if name not in _ARGUMENTS or (argument and _ARGUMENTS[name] is None):
        return None
    return Command(name, argument)


def misspelt(line: str) -> str | None:
    """What to tell of a line that is but a slip of the finger away from a command."""
    word = line.strip()
    if not word.startswith("/") or len(word.split()) > 1:
        return None
    hint = did_you_mean(word, _ARGUMENTS, cutoff=0.8)
    return f"There is no command {word}{hint}. `/send {word}` sends it." if hint else None
