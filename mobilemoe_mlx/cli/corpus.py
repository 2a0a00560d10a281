"""`mobilemoe corpus FOLDER`: the text that the quickstart trains on."""

from __future__ import annotations

import argparse
import sys

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json

EXAMPLES = (
    "mobilemoe corpus runs/corpus",
    "mobilemoe corpus runs/corpus --json runs/corpus.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("folder", help="where to write the corpus of this Python's library")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mobilemoe_mlx.data.stdlib_corpus import build_stdlib_corpus

    check_json(args.json)
    folder = files.output_folder(args.folder)
    print("Reading the standard library takes about ten seconds ...", file=sys.stderr)
    statistics = build_stdlib_corpus(folder)
    write_json(args.json, statistics)
    if not prints_json(args.json):
        print(f"{args.folder} holds the text of Python {statistics['python']}'s library:\n")
        rows = [["", "records", "characters", "held-out records"]]
        for kind, train in statistics["train"].items():
            counts = train["records"], train["characters"], statistics["heldout"][kind]["records"]
            rows.append([kind, *(f"{count:,}" for count in counts)])
        print(text_table.columns(rows))
        print(f"\nHeld-out modules: {', '.join(statistics['heldout_modules'])}")
