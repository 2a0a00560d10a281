"""argparse, with errors in our words: the nearest known name, what a number must be, what is given
twice or empty."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mobilemoe_mlx.errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser of a command or, by itself, of the sub-commands that are added to it.

    Options of the type `int` take whole numbers, those of the type `float` finite ones. No value is
    empty but a text's (`metavar=TEXT`): as a path it would be the current folder. Only options that
    collect values are given twice, for of others the last one would win in silence.
    """

    _TEXT = "TEXT"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", int, _whole_number)
        self.register("type", float, _finite_number)
        self._given: set[argparse.Action] = set()  # the options of the line that is parsed
        # argparse's own takes -3e8 or -5GB for an option, not for a value that can be refused.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's; an unknown option is answered with the nearest one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            option = next((word for word in unknown if word.startswith("-")), None)
            if option is None:
                self.error(f"there is one argument too many: '{unknown[0]}'")
            name = option.partition("=")[0]
            self.error(f"there is no option {name}{did_you_mean(name, set(_options(self)))}")
        return parsed

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """As argparse's, which parses the rest of a line by the parser of its sub-command."""
        self._given.clear()
        return super().parse_known_args(*args, **options)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and not isinstance(action, argparse._AppendAction):
            if action in self._given:
                raise argparse.ArgumentError(action, "it is given twice: leave one out")
            self._given.add(action)
        if "" in arg_strings and action.nargs != argparse.PARSER and action.metavar != self._TEXT:
            raise argparse.ArgumentError(action, "its value is empty: give one, or leave it out")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action,
                f"there is no '{value}'{did_you_mean(str(value), known)}; known: "
                f"{', '.join(known)}",
            )


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The names of the options of a parser and of its sub-commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _options(child)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # of thousands of digits too
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not a whole number") from None


def _finite_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number
