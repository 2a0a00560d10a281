"""`--engine`, `--precision` and `--threads`, for each command that runs a model."""

from __future__ import annotations

import argparse
from typing import Any


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="cpu or mlx (default: cpu for INT4 checkpoints on Linux, else mlx)",
    )
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="of the engine cpu: exact, int16 (default, near exact) or int8 (fastest)",
    )
    parser.add_argument(
        "--threads", type=int, help="of the engine cpu: 1 to 16 (default: one per CPU)"
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as keyword arguments of `open_with_tokenizer`; None: not asked for."""
    return {"engine": args.engine, "precision": args.precision, "threads": args.threads}
