"""`mobilemoe compare`: MLX against PyTorch, layer by layer and at the logits."""

from __future__ import annotations

import argparse
import sys

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.adapter_argument import adapters, add_adapter_argument
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json

DTYPES = ("float32", "float16", "bfloat16")


EXAMPLES = (
    "mobilemoe compare runs/quickstart/training/qat/model",
    'mobilemoe compare runs/quickstart/training/qat/model --prompt "import os" --output '
    "runs/compare",
    "mobilemoe compare runs/quickstart/training/sft/model --dtype bfloat16 --torch-dtype float32",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Exit status: 0 within the tolerance, 1 beyond it, 2 for a mistake in the call."
    parser.add_argument("checkpoint", help="model folder or Hugging Face repo id")
    add_adapter_argument(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of MLX (%(default)s)")
    parser.add_argument("--torch-dtype", choices=DTYPES, help="of PyTorch (as --dtype)")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", help="the text to run on")
    text.add_argument(
        "--tokens", type=int, default=128, metavar="N", help="random tokens to run on (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens (%(default)s)")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest error of the logits (float32: max 1e-4; half precision: docs/numerics.md)",
    )
    parser.add_argument(
        "--output",
        type=files.user_path,
        metavar="DIR",
        help="write compare.json and compare.png into this folder",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; 1 when beyond the tolerance."""
    check_json(args.json)
    output = None if args.output is None else files.output_folder(args.output)
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.compare.comparison import compare_checkpoint
    from mobilemoe_mlx.compare.table import as_text

    report = compare_checkpoint(
        resolve(args.checkpoint),
        adapters=adapters(args),
        dtype=args.dtype,
        torch_dtype=args.torch_dtype,
        prompt=args.prompt,
        num_tokens=args.tokens,
        seed=args.seed,
        tolerance=args.tolerance,
    )
    write_json(args.json, report.to_dict())
    if not prints_json(args.json):
        print(as_text(report))
    if output is not None:
        report.write(output)
        written = f"Wrote {output / 'compare.json'} and {output / 'compare.png'}"
        print(written, file=sys.stderr if prints_json(args.json) else sys.stdout)
    return 0 if report.passed else 1
