"""`mobilemoe export TARGET CHECKPOINT OUT`: each file in this folder is a target, by its name.

A target's file has `SUMMARY` (one line), `EXAMPLES` (whole command lines), `add_arguments(parser)`
and `run(args) -> int | None`. What it imports is light; the exporter itself is imported in `run`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from types import ModuleType

TARGETS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def _target(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __name__)


EXAMPLES = tuple(example for name in TARGETS for example in _target(name).EXAMPLES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare a sub-command for each target."""
    targets = parser.add_subparsers(
        title="targets",
        metavar="TARGET",
        dest="export_target",
        description="each has its own options: mobilemoe export TARGET --help",
    )
    for name in TARGETS:
        summary = _target(name).SUMMARY
        _target(name).add_arguments(targets.add_parser(name, help=summary, description=summary))
    parser.set_defaults(print_help=parser.print_help)


def run(args: argparse.Namespace) -> int | None:
    """Export to the chosen target; without one, list them."""
    if args.export_target is None:
        args.print_help()
        return None
    return _target(args.export_target).run(args)
