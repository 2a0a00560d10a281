"""`mobilemoe scale TASK ...`: each file in this folder is a task, by its name.

A task's file has `SUMMARY` (one line), `EXAMPLES` (whole command lines), `add_arguments(parser)`
and `run(args) -> int | None`. What it imports is light; the work itself is imported in `run`.
"""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

TASKS = ("predict", "design", "fit", "compare")


def _task(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __name__)


EXAMPLES = tuple(example for name in TASKS for example in _task(name).EXAMPLES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare a sub-command for each task."""
    tasks = parser.add_subparsers(
        title="tasks",
        metavar="TASK",
        dest="scale_task",
        description="each has its own options: mobilemoe scale TASK --help",
    )
    for name in TASKS:
        summary = _task(name).SUMMARY
        _task(name).add_arguments(tasks.add_parser(name, help=summary, description=summary))
    parser.set_defaults(print_help=parser.print_help)


def run(args: argparse.Namespace) -> int | None:
    """Run the chosen task; without one, list them."""
    if args.scale_task is None:
        args.print_help()
        return None
    return _task(args.scale_task).run(args)
