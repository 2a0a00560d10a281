"""`mobilemoe export onnx CHECKPOINT OUT`: a folder for ONNX Runtime and onnxruntime-genai."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from mobilemoe_mlx.cli.adapter_argument import adapters
from mobilemoe_mlx.cli.export_arguments import add_export_arguments, asked_options, check_it
from mobilemoe_mlx.cli.json_option import check_json, prints_json, write_json
from mobilemoe_mlx.cli.signals import ended_by_signals
from mobilemoe_mlx.export.onnx.options import (
    ACCURACY_LEVELS,
    ACTIVATIONS,
    FORMS,
    ExportOptions,
)

if TYPE_CHECKING:
    from mobilemoe_mlx.export.onnx.folder import Exported

SUMMARY = "a folder for ONNX Runtime and onnxruntime-genai (Android, Linux, Windows)"

EXAMPLES = (
    "mobilemoe export onnx runs/quickstart/training/qat/model runs/tiny-onnx",
    "mobilemoe export onnx runs/quickstart/training/sft/model runs/tiny-portable --quantize "
    "--form portable --context 512 --activations float16",
)

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(ExportOptions)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--form",
        choices=FORMS,
        default=_DEFAULTS["form"],
        help="experts by our own operators (fused, the default: fastest, needs the library that "
        "is put into the folder), by ONNX Runtime's own alone (portable), or by its QMoE, which "
        "rounds them a second time (qmoe)",
    )
    parser.add_argument(
        "--activations",
        choices=ACTIVATIONS,
        default=_DEFAULTS["activations"],
        help="type of linears, attention and cache (default: %(default)s)",
    )
    parser.add_argument(
        "--accuracy-level",
        type=int,
        choices=ACCURACY_LEVELS,
        default=_DEFAULTS["accuracy_level"],
        help="what activations are rounded to in products with INT4: 0 the runtime's choice "
        "(default), 1 float32, 4 int8 (fastest)",
    )
    parser.add_argument(
        "--requantize",
        action="store_true",
        help="of the form qmoe: accept the second rounding, and print the error that it adds",
    )
    add_export_arguments(parser, "OUT", "the folder to write", _DEFAULTS["context"])


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.onnx_folder.extra import need

    need("onnx", "onnxruntime")
    from mobilemoe_mlx.export.onnx.folder import export_onnx

    folder = resolve(args.checkpoint, args.revision)
    asked = asked_options(args, _DEFAULTS, folder)
    with ended_by_signals():
        done = export_onnx(
            folder,
            args.output,
            ExportOptions(**asked),
            quantize=args.quantize,
            adapters=adapters(args),
            force=args.overwrite,
        )
    write_json(args.json, done.to_dict())
    if not prints_json(args.json):
        print("\n".join([*_report(done), check_it(args)]))


def _report(done: Exported) -> list[str]:
    """What was written, line by line."""
    lines = [
        f"{done.folder} ({done.form}): {done.model_bytes / 1e6:,.1f} MB "
        f"({done.model_bytes / done.checkpoint_bytes:.3f} x the checkpoint's weights)"
    ]
    if not done.has_tokenizer:
        lines.append("The checkpoint has no tokenizer.json, so the folder has none either.")
    if done.added_error is not None:
        lines.append(done.added_error.text())
    return lines
