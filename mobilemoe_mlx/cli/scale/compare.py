"""`mobilemoe scale compare`: what the paper says of its rivals, recomputed."""

from __future__ import annotations

import argparse

from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.scale.pictures_option import (
    add_pictures_argument,
    check_pictures,
    write_pictures,
)

SUMMARY = "the paper's claims about its rivals, recomputed from their configurations"

EXAMPLES = ("mobilemoe scale compare",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the task's arguments."""
    parser.add_argument(
        "--context",
        type=int,
        default=2048,
        metavar="TOKENS",
        help="count attention and cache at this context (default: 2048)",
    )
    add_pictures_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the task."""
    check_json(args.json)
    check_pictures(args.pictures)
    from mobilemoe_mlx.scaling.compare import claims, costed_models, table, to_dict

    models = costed_models(args.context)
    found = claims(models)

    def draw() -> dict[str, bytes]:
        from mobilemoe_mlx.scaling.pictures import pareto

        return {"pareto": pareto(models)}

    pictures = write_pictures(args.pictures, draw)
    write_json(args.json, {**to_dict(models, found), "pictures": pictures})
    if not prints_json(args.json):
        print("\n".join([table(models, found), *pictures]))
