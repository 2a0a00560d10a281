"""argparse, with errors in our words: the nearest known name, and what a number must be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mobilemoe_mlx.errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser of a command or, by itself, of the sub-commands that are added to it.

    Options of the type `int` take whole numbers, those of the type `float` finite ones.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", int, _whole_number)
        self.register("type", float, _finite_number)

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
