"""`mobilemoe scale predict`: the loss that the law gives a size, and what would lower it."""

from __future__ import annotations

import argparse
import math

from mobilemoe_mlx import text_table
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.scale.pictures_option import (
    add_pictures_argument,
    check_pictures,
    write_pictures,
)
from mobilemoe_mlx.cli.scale.plain_counts import check_plain_count
from mobilemoe_mlx.cli.sizes import count
from mobilemoe_mlx.errors import UserError

SUMMARY = "the loss that the scaling law predicts for a size and a number of tokens"

EXAMPLES = ("mobilemoe scale predict --active 0.3e9 --tokens 500e9 --experts 8",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the task's arguments."""
    parser.add_argument(
        "--active", type=count, required=True, metavar="COUNT", help="parameters per token: 300M"
    )
    parser.add_argument(
        "--tokens", type=count, required=True, metavar="COUNT", help="training tokens: 6T, 6e12"
    )
    parser.add_argument(
        "--experts",
        type=float,
        default=1.0,
        help="in equivalents of the dense feed-forward layer, E of MobileMoE is 8 (default: 1)",
    )
    parser.add_argument(
        "--law", metavar="FILE", help="of `scale fit --json FILE` (default: the paper's law)"
    )
    add_pictures_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the task."""
    check_json(args.json)
    check_pictures(args.pictures)
    from mobilemoe_mlx.scaling.law import PAPER, read_law

    law = read_law(args.law) if args.law else PAPER
    check_plain_count("--active", args.active, law.fitted_on.active)
    check_plain_count("--tokens", args.tokens, law.fitted_on.tokens)
    at = (args.active, args.tokens, args.experts)
    if not math.isfinite(law.loss(*at)):
        raise UserError(
            " ".join(["The law gives no finite loss there: it is too steep.", *law.outside(*at)])
        )
    by_size, by_data = law.terms(*at)
    gradient = law.gradient(*at)
    tenth = math.log(1.1)
    record = {
        "loss": law.loss(*at),
        "by_size": by_size,
        "by_data": by_data,
        "floor": law.c,
        "rmse": law.rmse,
        "effective_experts": law.effective_experts(args.experts),
        "per_tenth_more": {
            "active": gradient.active * args.active * tenth,
            "tokens": gradient.tokens * args.tokens * tenth,
            "experts": gradient.experts * args.experts * tenth,
        },
        "warnings": law.outside(*at),
    }

    def draw() -> dict[str, bytes]:
        from mobilemoe_mlx.scaling.pictures import of_law

        return of_law(law, args.tokens)

    record["pictures"] = write_pictures(args.pictures, draw)
    write_json(args.json, record)
    if not prints_json(args.json):
        print(_text(record))


def _text(record: dict) -> str:
    cells = {
        "loss": f"{record['loss']:.4f} nats per token (the law's own error: {record['rmse']:.4f})",
        "of it by size": f"{record['by_size']:.4f}",
        "of it by data": f"{record['by_data']:.4f}",
        "floor": f"{record['floor']:.4f}",
        "effective experts": f"{record['effective_experts']:.2f}",
    }
    for name, change in record["per_tenth_more"].items():
        cells[f"a tenth more {name}"] = f"{change:+.4f}"
    notes = [f"Note: {each}" for each in record["warnings"]]
    return "\n".join([text_table.labelled(cells), *notes, *record["pictures"]])
