"""`mobilemoe verify PACKAGE --against CHECKPOINT`: does the one compute what the other does?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mobilemoe_mlx.errors import UserError

CASES = ("short", "long", "full", "chat", "routing")


EXAMPLES = (
    "mobilemoe verify runs/quickstart/MobileMoE-tiny.mlpackage --against "
    "runs/quickstart/training/qat/model",
    "mobilemoe verify runs/quickstart/MobileMoE-tiny.mlpackage --against "
    "runs/quickstart/training/qat/model --case short --json runs/proof.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Exit status: 0 when everything holds, 1 when not, 2 for a mistake in the call."
    parser.add_argument("package", help="a .mlpackage that `mobilemoe export` wrote")
    parser.add_argument(
        "--against",
        required=True,
        metavar="CHECKPOINT",
        help="the checkpoint it was made from: a folder or a Hugging Face repository id",
    )
    parser.add_argument(
        "--case",
        action="append",
        choices=CASES,
        help="a prompt shorter than a block, longer, one that fills the context, a chat from any "
        "position, or all kinds of routing; may be given several times (default: all; `full` takes "
        "long for large models)",
    )
    parser.add_argument("--prompt", help="the text to continue greedily")
    parser.add_argument(
        "--greedy-tokens",
        type=int,
        default=24,
        metavar="N",
        help="how far to continue it (default: %(default)s; 0: not at all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cases' tokens (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there")


def run(args: argparse.Namespace) -> int:
    """Run the command; 1 when a check fails."""
    from mobilemoe_mlx import files
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.verify.verify import verify_package

    if args.json is not None and (args.json.is_dir() or not args.json.absolute().parent.is_dir()):
        raise UserError(f"--json {args.json}: not a file in a folder that exists.")
    report = verify_package(
        args.package,
        resolve(args.against),
        cases=args.case or CASES,
        prompt=args.prompt,
        greedy_tokens=args.greedy_tokens,
        seed=args.seed,
        say=lambda text: print(f"{text} ...", file=sys.stderr),
    )
    print(report.text())
    if args.json is not None:
        files.write(args.json, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    return 0 if report.passed else 1
