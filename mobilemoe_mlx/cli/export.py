"""`mobilemoe export coreml CHECKPOINT OUT.mlpackage`: a package for an app, with its resources."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from mobilemoe_mlx.coreml.options import TARGETS, ExportOptions

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(ExportOptions)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("format", choices=("coreml",), help="the form to export to")
    parser.add_argument("checkpoint", help="a checkpoint folder or a Hugging Face repository id")
    parser.add_argument("output", metavar="OUT.mlpackage", help="the package to write")
    parser.add_argument(
        "--moe",
        choices=("core-ops", "custom-layer"),
        default=_DEFAULTS["moe"],
        help="experts as Core ML's own ops (default), or as custom layers that the app implements "
        "(coreml/README.md)",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        default=_DEFAULTS["context"],
        help="positions in the key/value cache (default: %(default)s)",
    )
    parser.add_argument(
        "--prefill-block",
        type=int,
        metavar="TOKENS",
        default=_DEFAULTS["prefill_block"],
        help="tokens of one call of prefill (default: %(default)s)",
    )
    parser.add_argument(
        "--logits",
        choices=("last", "all"),
        default=_DEFAULTS["logits"],
        help="what prefill returns: its last token's logits (default) or all",
    )
    parser.add_argument(
        "--target",
        default=_DEFAULTS["target"],
        help=f"the oldest system to run on: {', '.join(TARGETS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--weights-beside",
        action="store_true",
        help="custom layers: put the weights into a file of the resources folder, as is done "
        "above 1.9 GB in any case",
    )
    parser.add_argument(
        "--quantize", action="store_true", help="round a BF16 checkpoint to nearest INT4 (lossy)"
    )
    parser.add_argument("--author", help="the author that Xcode shows")
    parser.add_argument("--license", help="the licence that Xcode shows")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--revision", help="branch, tag or commit of a repository")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mobilemoe_mlx.coreml.metadata import Credits
    from mobilemoe_mlx.coreml.package import export_coreml
    from mobilemoe_mlx.hub import resolve

    done = export_coreml(
        resolve(args.checkpoint, args.revision),
        args.output,
        ExportOptions(**{name: getattr(args, name) for name in _DEFAULTS}),
        quantize=args.quantize,
        credit=Credits(args.author, args.license),
        force=args.force,
    )
    print(
        f"{done.package}: {done.package_bytes / 1e6:,.1f} MB "
        f"({done.package_bytes / done.checkpoint_bytes:.3f} x the checkpoint's weights)\n"
        f"{done.resources}: tokenizer, settings, manifest"
    )
    if not done.has_tokenizer:
        print("The checkpoint has no tokenizer.json, so the resources have none either.")
    print(f"Check it: mobilemoe verify {args.output} --against {args.checkpoint}")
