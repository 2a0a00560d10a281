"""`mobilemoe convert`: rewrite a checkpoint in another layout or other shards."""

from __future__ import annotations

import argparse

from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.sizes import byte_size
from mobilemoe_mlx.config import SCALE_RULES
from mobilemoe_mlx.errors import UserError

EXAMPLES = (
    "mobilemoe convert runs/quickstart/training/qat/model runs/tiny-mlx --to mlx",
    "mobilemoe convert runs/quickstart/training/qat/model runs/tiny-transformers --to transformers",
    "mobilemoe convert runs/quickstart/training/sft/model runs/tiny-rounded --quantize "
    "--shard-size 4MB --json runs/convert.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("source", help="a checkpoint folder or a Hugging Face repo id")
    parser.add_argument("output", help="the folder to write")
    parser.add_argument(
        "--to",
        choices=("published", "mlx", "transformers"),
        default="published",
        help="the layout: as published (default); for mlx_lm.generate, .server and .evaluate with "
        "--trust-remote-code; or as published with the files of a PyTorch model for transformers",
    )
    parser.add_argument(
        "--quantize", action="store_true", help="round a BF16 checkpoint to nearest INT4 (lossy)"
    )
    parser.add_argument(
        "--scale-rule",
        choices=SCALE_RULES,
        help="of --quantize: scales with which nothing is clipped (default), or the paper's, "
        "max |value| / 7.5",
    )
    parser.add_argument(
        "--shard-size",
        type=byte_size,
        help="the most a file holds, like 500MB (default: 5GB)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
    parser.add_argument("--revision", help="branch, tag or commit of a repo")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mobilemoe_mlx.checkpoint.folder import MAX_SHARD_BYTES
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.checkpoint.rewrite import convert

    check_json(args.json)
    if args.scale_rule is not None and not args.quantize:
        raise UserError("--scale-rule belongs to --quantize: give that too, or leave it out.")
    done = convert(
        resolve(args.source, args.revision),
        args.output,
        to=args.to,
        quantize=args.quantize,
        rule=args.scale_rule or "unclipped",
        max_shard_bytes=MAX_SHARD_BYTES if args.shard_size is None else args.shard_size,
        overwrite=args.overwrite,
    )
    record = {
        "output": args.output,
        "layout": done.layout.value,
        "tensors": done.tensors,
        "bytes": done.nbytes,
    }
    write_json(args.json, record)
    if prints_json(args.json):
        return
    print(
        f"{args.output}: {done.tensors} tensors, {done.nbytes / 1e6:,.1f} MB, {done.layout.value}"
    )
    if args.to == "mlx":
        print(f"Try: mlx_lm.generate --model {args.output} --trust-remote-code --prompt Hello")
    elif args.to == "transformers":
        load = f"AutoModelForCausalLM.from_pretrained({args.output!r}, trust_remote_code=True)"
        print(f"In Python: {load}")
