"""`mobilemoe quickstart`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", default="runs/quickstart", help="folder for everything it makes")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier quickstart")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a value of the tiny recipe, as in `mobilemoe train`",
    )


def run(args: argparse.Namespace) -> None:
    from mobilemoe_mlx.quickstart.run import quickstart

    report = quickstart(args.run, overrides=args.overrides, overwrite=args.overwrite)
    print(f"\nThe report is {report}")
