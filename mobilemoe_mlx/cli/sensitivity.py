"""`mobilemoe sensitivity MODEL --data PATH`: what rounding each part of a model to INT4 costs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.sizes import byte_size
from mobilemoe_mlx.config import SCALE_RULES

_TOKENS = 32_768  # of the held-out data, unless --tokens says how many

EXAMPLES = (
    "mobilemoe sensitivity runs/quickstart/training/sft/model --data "
    "runs/quickstart/corpus/qa.heldout.jsonl --tokens 512",
    "mobilemoe sensitivity runs/quickstart/training/sft/model --data "
    "runs/quickstart/corpus/qa.heldout.jsonl --tokens 512 --experts 2 --scale-rule paper "
    "--picture runs/sensitivity.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", help="a BF16 checkpoint: a folder or a repository id")
    parser.add_argument(
        "--data",
        metavar="PATH",
        required=True,
        help="texts or conversations to measure on: a file, or what `mobilemoe finetune` would "
        "hold out of a folder, mixture or data set",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=_TOKENS,
        metavar="N",
        help=f"positions to measure on at most (default: {_TOKENS:,})",
    )
    parser.add_argument(
        "--experts",
        type=int,
        default=0,
        metavar="N",
        help="estimate what each routed expert costs, and measure the costliest N",
    )
    parser.add_argument(
        "--budget",
        type=byte_size,
        nargs="+",
        default=[],
        metavar="SIZE",
        help="suggest which tensors stay BF16 where all take at most SIZE, like 2MB or 900MB; a "
        "study, since no layout stores such a mix",
    )
    parser.add_argument(
        "--scale-rule",
        choices=SCALE_RULES,
        default="unclipped",
        help="of INT4: scales with which nothing is clipped (default), or the paper's",
    )
    parser.add_argument("--picture", metavar="FILE", help="draw the costs into a PNG file")
    parser.add_argument("--revision", help="branch, tag or commit of a repository")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    from mobilemoe_mlx.errors import UserError

    for option, least in (("tokens", 1), ("experts", 0)):
        if getattr(args, option) < least:
            raise UserError(f"--{option} is {getattr(args, option)}; it must be at least {least}.")
    from mobilemoe_mlx.png_pictures import check_can_draw
    from mobilemoe_mlx.sensitivity.picture import picture
    from mobilemoe_mlx.sensitivity.run import run_sensitivity
    from mobilemoe_mlx.sensitivity.table import as_text

    if args.picture is not None:
        check_can_draw("--picture", args.picture)
    found = run_sensitivity(
        args.model,
        args.data,
        most_tokens=args.tokens,
        experts=args.experts,
        budgets=args.budget,
        rule=args.scale_rule,
        revision=args.revision,
        progress=_bar,
    )
    if args.picture is not None:
        files.write(files.user_path(args.picture), picture(found))
    write_json(args.json, found.to_dict())
    if not prints_json(args.json):
        print(as_text(found))


def _bar(total: int) -> Callable[[], None]:
    from tqdm import tqdm

    bar = tqdm(total=total, desc="sensitivity", unit="measurement", file=sys.stderr)

    def done() -> None:
        bar.update()
        if bar.n == total:
            bar.close()

    return done
