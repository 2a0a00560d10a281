"""Commands with a folder of their own: each file in it is a sub-command, by its name.

A sub-command's file has `SUMMARY` (one line), `EXAMPLES` (whole command lines),
`add_arguments(parser)` and `run(args) -> int | None`. What it imports is light; the work itself is
imported in `run`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType


class SubCommands:
    """The files `names` of the package `package` as sub-commands of the command of its name.

    `kind`: what one is called ("target"), in the help and as the place of its name.
    """

    def __init__(self, package: str, kind: str, names: Sequence[str]) -> None:
        self._package, self._kind, self._names = package, kind, names
        self._command = package.rpartition(".")[2]

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f".{name}", self._package)

    @property
    def _chosen(self) -> str:
        return f"{self._command}_{self._kind}"

    def examples(self) -> tuple[str, ...]:
        """Those of all sub-commands."""
        return tuple(example for name in self._names for example in self._module(name).EXAMPLES)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare a parser for each sub-command."""
        place = self._kind.upper()
        parsers = parser.add_subparsers(
            title=f"{self._kind}s",
            metavar=place,
            dest=self._chosen,
            description=f"each has its own options: mobilemoe {self._command} {place} --help",
        )
        for name in self._names:
            module = self._module(name)
            summary = module.SUMMARY
            module.add_arguments(parsers.add_parser(name, help=summary, description=summary))
        parser.set_defaults(print_help=parser.print_help)

    def run(self, args: argparse.Namespace) -> int | None:
        """Run the chosen sub-command; without one, list them."""
        name = getattr(args, self._chosen)
        if name is None:
            args.print_help()
            return None
        result: int | None = self._module(name).run(args)
        return result
