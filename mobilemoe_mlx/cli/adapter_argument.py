"""`--adapter DIR[:WEIGHT]`, for each command that runs, compares or exports a model."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_adapter_argument(parser: argparse.ArgumentParser) -> None:
    """Declare it."""
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="DIR[:WEIGHT]",
        help="add an adapter of this checkpoint, its update times WEIGHT (1 if none is given, as "
        "in style:0.5); may be repeated",
    )


def adapters(args: argparse.Namespace) -> list[tuple[Path, float]]:
    """The adapters that were asked for; raises UserError for a weight that is no number."""
    if not args.adapter:
        return []
    from mobilemoe_mlx.adapters.adapter_file import parse_adapter

    return [parse_adapter(text) for text in args.adapter]
