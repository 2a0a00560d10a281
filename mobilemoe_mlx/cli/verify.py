"""`mobilemoe verify PACKAGE --against CHECKPOINT`: does the one compute what the other does?"""

from __future__ import annotations

import argparse
import sys

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.adapter_argument import adapters, add_adapter_argument
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json

CASES = ("short", "long", "full", "chat", "routing")


EXAMPLES = (
    "mobilemoe verify runs/quickstart/MobileMoE-tiny.mlpackage --against "
    "runs/quickstart/training/qat/model",
    "mobilemoe verify runs/quickstart/MobileMoE-tiny.mlpackage --against "
    "runs/quickstart/training/qat/model --case short --json runs/proof.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Exit status: 0 when everything that was asked for is proved, 1 when a check fails or the "
        "files cannot\nbe checked (a package without its resources folder), 2 for a mistake in the "
        "call."
    )
    parser.add_argument(
        "package", help="a .mlpackage or an ONNX folder that `mobilemoe export` wrote"
    )
    parser.add_argument(
        "--against",
        required=True,
        metavar="CHECKPOINT",
        help="the checkpoint it was made from: a folder or a Hugging Face repository id",
    )
    add_adapter_argument(parser)
    parser.add_argument(
        "--case",
        action="append",
        choices=CASES,
        help="a prompt shorter than a block, longer, one that fills the context, a chat from any "
        "position, or all kinds of routing; may be given several times (default: all; `full` takes "
        "long for large models)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the text to continue greedily")
    parser.add_argument(
        "--greedy-tokens",
        type=int,
        default=24,
        metavar="N",
        help="how far to continue it (default: %(default)s; 0: not at all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cases' tokens (%(default)s)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; 1 when a check fails, or the package's files cannot be checked."""
    check_json(args.json)
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.onnx_folder.folder import is_onnx_folder

    if not is_onnx_folder(files.user_path(args.package)):
        from mobilemoe_mlx.mlpackage.interrupts import import_coremltools

        import_coremltools()
    from mobilemoe_mlx.verify.verdict_text import as_text
    from mobilemoe_mlx.verify.verify import verify_package

    verdict = verify_package(
        args.package,
        resolve(args.against),
        adapters=adapters(args),
        cases=args.case or CASES,
        prompt=args.prompt,
        greedy_tokens=args.greedy_tokens,
        seed=args.seed,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    write_json(args.json, verdict.to_dict())
    if not prints_json(args.json):
        print(as_text(verdict))
    return 0 if verdict.proved else 1
