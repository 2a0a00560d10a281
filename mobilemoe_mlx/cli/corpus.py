"""`mobilemoe corpus FOLDER`: the text that the quickstart trains on."""

from __future__ import annotations

import argparse

from mobilemoe_mlx import files
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
    statistics = build_stdlib_corpus(files.output_folder(args.folder))
    write_json(args.json, statistics)
    if not prints_json(args.json):
        for name, value in statistics.items():
            print(f"{name}: {value}")
