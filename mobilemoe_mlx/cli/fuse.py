"""`mobilemoe fuse MODEL ADAPTER... OUT`: adapters become part of a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.config import SCALE_RULES

if TYPE_CHECKING:
    from mobilemoe_mlx.adapters.fuse import Fused
    from mobilemoe_mlx.model import Model

EXAMPLES = (
    "mobilemoe fuse runs/quickstart/training/sft/model runs/mine/adapter runs/mine/fused",
    "mobilemoe fuse runs/quickstart/training/sft/model runs/mine/adapter runs/mine/int4 --to int4 "
    "--data runs/mine/chat.jsonl --force",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", help="the adapters' base: a folder or a Hugging Face repository")
    parser.add_argument(
        "adapter",
        nargs="+",
        metavar="ADAPTER[:WEIGHT]",
        help="an adapter's folder, with the weight of its update (1 if none is given)",
    )
    parser.add_argument("output", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--to",
        choices=("bf16", "int4"),
        help="the published form to write (default: the model's; int4 for adapters trained "
        "through it)",
    )
    parser.add_argument(
        "--scale-rule",
        choices=SCALE_RULES,
        help="of INT4 scales (default: the one that the adapter was trained with, or unclipped)",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="measure the loss before and after on what `mobilemoe finetune --data` would hold out",
    )
    parser.add_argument(
        "--force", action="store_true", help="write INT4 that loses most of the adapter too"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model folder")
    parser.add_argument("--revision", help="branch, tag or commit of a repository")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    from mobilemoe_mlx.adapters.adapter_file import parse_adapter
    from mobilemoe_mlx.adapters.fuse import fuse
    from mobilemoe_mlx.checkpoint.hub import resolve

    folder = resolve(args.model, args.revision)
    done = fuse(
        folder,
        [parse_adapter(text) for text in args.adapter],
        args.output,
        to=args.to,
        rule=args.scale_rule,
        heldout=None if args.data is None else _heldout(args.data, folder),
        force=args.force,
        overwrite=args.overwrite,
    )
    write_json(args.json, done.to_dict())
    if not prints_json(args.json):
        print(_text(done))


def _heldout(path: str, folder: Path) -> Callable[[Model], float]:
    """Reads the data now, and measures models on its held-out part later."""
    from mobilemoe_mlx.finetune.heldout_data import open_heldout_data
    from mobilemoe_mlx.train.evaluate import heldout_loss

    data = open_heldout_data(path, folder)
    return lambda model: heldout_loss(model, data.batches, document_mask=data.document_mask)


def _text(done: Fused) -> str:
    from mobilemoe_mlx import text_table
    from mobilemoe_mlx.checkpoint.layouts import Layout

    lines = [
        f"{done.output}: {done.tensors} tensors, {done.nbytes / 1e6:,.1f} MB, {done.layout.value}"
    ]
    if done.through_int4 and done.layout is Layout.FLOAT:
        lines.append(
            "Note: the adapter was trained through the rounding to INT4, which BF16 leaves out, so "
            "this is not the model that was trained; that one is what fuse writes with --to int4."
        )
    if done.survival:
        rows = [
            (each.kind, str(each.modules), f"{each.survives:.1%}", f"{each.error:.3f}")
            for each in done.survival
        ]
        header = ("update of", "modules", "survives INT4", "relative error")
        lines += ["", text_table.columns((header, *rows))]
    if done.heldout_before is not None and done.heldout_after is not None:
        lines += [
            "",
            f"held-out loss: {done.heldout_before:.4f} before, {done.heldout_after:.4f} after",
        ]
    return "\n".join(lines)
