"""`mobilemoe plot RUN`: the pictures of a training run."""

from __future__ import annotations

import argparse

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json

EXAMPLES = (
    "mobilemoe plot runs/quickstart/training",
    "mobilemoe plot runs/quickstart/training --output runs/pictures",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", help="folder of a training run")
    parser.add_argument("--output", help="folder for the pictures (default: the run's)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mobilemoe_mlx.train.plot import curves, plot_run

    check_json(args.json)
    if args.output is not None:
        files.output_folder(args.output)
    pictures = plot_run(args.run, args.output)
    record = {"pictures": [str(path) for path in pictures], "stages": curves(args.run)}
    write_json(args.json, record)
    if not prints_json(args.json):
        for path in pictures:
            print(path)
