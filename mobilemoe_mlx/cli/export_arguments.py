"""What every target of `mobilemoe export` asks for and says in the end."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from mobilemoe_mlx.cli.adapter_argument import add_adapter_argument
from mobilemoe_mlx.cli.json_option import add_json_argument


def add_export_arguments(
    parser: argparse.ArgumentParser, output: str, what: str, context: int
) -> None:
    """Declare them. `output`: how help calls OUT, `what` it is; `context`: the target's default."""
    parser.add_argument("checkpoint", help="a checkpoint folder or a Hugging Face repository id")
    parser.add_argument("output", metavar=output, help=what)
    parser.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help=f"positions in the key/value cache (default: {context}, or the model's)",
    )
    parser.add_argument(
        "--quantize", action="store_true", help="round a BF16 checkpoint to nearest INT4 (lossy)"
    )
    add_adapter_argument(parser)
    parser.add_argument(
        "--overwrite", "--force", action="store_true", help="replace an earlier export"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a repository")
    add_json_argument(parser)


def asked_options(
    args: argparse.Namespace, defaults: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The values of those arguments that `defaults` names, with the context that fits `folder`."""
    from mobilemoe_mlx.checkpoint.check import open_checkpoint
    from mobilemoe_mlx.export.context import default_context

    asked = {name: value for name in defaults if (value := getattr(args, name)) is not None}
    asked.setdefault("context", default_context(open_checkpoint(folder).args))
    return asked


def check_it(args: argparse.Namespace) -> str:
    """The line that says how the export is proved."""
    names = (shlex.quote(name) for name in (args.output, args.checkpoint))
    more = "".join(f" --adapter {shlex.quote(text)}" for text in args.adapter)
    return "Check it: mobilemoe verify {} --against {}".format(*names) + more
