"""`mobilemoe corpus FOLDER`: the text that the quickstart trains on, or tasks to evaluate with."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json

EXAMPLES = (
    "mobilemoe corpus runs/corpus",
    "mobilemoe corpus runs/stdlib-tasks --tasks",
    "mobilemoe corpus runs/corpus --json runs/corpus.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", help="where to write the corpus of this Python's library")
    parser.add_argument(
        "--tasks",
        action="store_true",
        help="write evaluation tasks about the held-out modules instead, for `mobilemoe eval` and "
        "lm-evaluation-harness",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    folder = files.output_folder(args.folder)
    if args.tasks:
        from mobilemoe_mlx.data.stdlib_tasks import build_stdlib_tasks

        statistics = build_stdlib_tasks(folder)
        text = _about_tasks(args.folder, statistics)
    else:
        from mobilemoe_mlx.data.stdlib_corpus import build_stdlib_corpus

        print("Reading the standard library takes about ten seconds ...", file=sys.stderr)
        statistics = build_stdlib_corpus(folder)
        text = _about_corpus(args.folder, statistics)
    write_json(args.json, statistics)
    if not prints_json(args.json):
        print(text)
        print(f"\nHeld-out modules: {', '.join(statistics['heldout_modules'])}")


def _about_corpus(folder: str, statistics: dict[str, Any]) -> str:
    rows = [["", "records", "characters", "held-out records"]]
    for kind, train in statistics["train"].items():
        counts = train["records"], train["characters"], statistics["heldout"][kind]["records"]
        rows.append([kind, *(f"{count:,}" for count in counts)])
    head = f"{folder} holds the text of Python {statistics['python']}'s library:"
    return f"{head}\n\n{text_table.columns(rows)}"


def _about_tasks(folder: str, statistics: dict[str, Any]) -> str:
    rows = [["", "questions"]]
    rows += [[name, f"{count:,}"] for name, count in statistics["questions"].items()]
    head = f"{folder} holds tasks about Python {statistics['python']}'s library:"
    use = f"mobilemoe eval MODEL --include {folder} --tasks stdlib"
    return f"{head}\n\n{text_table.columns(rows)}\n\nAsk them: {use}"
