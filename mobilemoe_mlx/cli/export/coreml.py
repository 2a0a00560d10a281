"""`mobilemoe export coreml CHECKPOINT OUT.mlpackage`: a package for an app, with its resources."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from mobilemoe_mlx.cli.adapter_argument import adapters
from mobilemoe_mlx.cli.export_arguments import add_export_arguments, asked_options, check_it
from mobilemoe_mlx.cli.json_option import check_json, prints_json, write_json
from mobilemoe_mlx.cli.signals import ended_by_signals
from mobilemoe_mlx.export.coreml.options import TARGETS, ExportOptions

if TYPE_CHECKING:
    from mobilemoe_mlx.export.coreml.package import Exported

SUMMARY = "a Core ML package for iPhone and Mac, with its resources folder"

EXAMPLES = (
    "mobilemoe export coreml runs/quickstart/training/qat/model runs/tiny.mlpackage",
    "mobilemoe export coreml runs/quickstart/training/sft/model runs/tiny-rounded.mlpackage "
    "--quantize --context 512",
    "mobilemoe export coreml runs/quickstart/training/qat/model runs/tiny-custom.mlpackage "
    "--moe custom-layer",
)


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(ExportOptions)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--moe",
        choices=("core-ops", "custom-layer"),
        default=_DEFAULTS["moe"],
        help="experts as Core ML's own ops (default), or as custom layers that the app implements "
        "(coreml/README.md)",
    )
    parser.add_argument(
        "--prefill-block",
        type=int,
        metavar="TOKENS",
        help=f"tokens of one call of prefill (default: {_DEFAULTS['prefill_block']}, or the "
        "context)",
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
        help=f"the oldest system to run on: {', '.join(TARGETS)}, also under the names that macOS "
        "has for them, macOS15 and macOS26 (default: %(default)s)",
    )
    parser.add_argument(
        "--weights-beside",
        action="store_true",
        help="custom layers: put the weights into a file of the resources folder, as is done "
        "above 1.9 GB in any case",
    )
    parser.add_argument("--author", metavar="TEXT", help="the author that Xcode shows")
    parser.add_argument("--license", metavar="TEXT", help="the licence that Xcode shows")
    add_export_arguments(parser, "OUT.mlpackage", "the package to write", _DEFAULTS["context"])


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    from mobilemoe_mlx.mlpackage.interrupts import import_coremltools

    import_coremltools()
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.export.coreml.metadata import Credits
    from mobilemoe_mlx.export.coreml.package import export_coreml

    folder = resolve(args.checkpoint, args.revision)
    asked = asked_options(args, _DEFAULTS, folder)
    asked.setdefault("prefill_block", min(_DEFAULTS["prefill_block"], asked["context"]))
    with ended_by_signals():
        done = export_coreml(
            folder,
            args.output,
            ExportOptions(**asked),
            quantize=args.quantize,
            adapters=adapters(args),
            credit=Credits(args.author, args.license),
            force=args.overwrite,
        )
    write_json(args.json, done.to_dict())
    if not prints_json(args.json):
        print("\n".join([*_report(done), check_it(args)]))


def _report(done: Exported) -> list[str]:
    """What was written, line by line."""
    lines = [
        f"{done.package}: {done.package_bytes / 1e6:,.1f} MB "
        f"({done.package_bytes / done.checkpoint_bytes:.3f} x the checkpoint's weights; tables and "
        "the program do not grow with them)",
        f"{done.resources}: {'tokenizer, ' if done.has_tokenizer else ''}settings, manifest",
    ]
    if not done.has_tokenizer:
        lines.append("The checkpoint has no tokenizer.json, so the resources have none either.")
    return lines
