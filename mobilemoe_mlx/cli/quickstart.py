"""`mobilemoe quickstart`: the main job end to end, at a tiny size."""

from __future__ import annotations

import argparse
import shlex
import sys

from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json

EXAMPLES = (
    "mobilemoe quickstart",
    "mobilemoe quickstart --run runs/short --overwrite --set tokens=60000",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--run", default="runs/quickstart", help="folder for everything it makes")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier quickstart")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a value of the tiny recipe, as in `mobilemoe train`",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    from mobilemoe_mlx.mlpackage.interrupts import import_coremltools

    import_coremltools()
    from mobilemoe_mlx.quickstart.run import quickstart

    output = sys.stderr if prints_json(args.json) else sys.stdout
    print("This takes about five minutes on two quiet processor cores.", file=output, flush=True)
    finished = quickstart(
        args.run,
        overrides=args.overrides,
        overwrite=args.overwrite,
        say=lambda text: print(text, file=output, flush=True),
    )
    write_json(args.json, finished.figures.to_dict())
    model = shlex.quote(str(finished.model))
    print(
        f"\nThe report is {finished.report}\nNext:\n"
        f"  mobilemoe chat {model}\n"
        f"  mobilemoe generate {model} --prompt 'import os'",
        file=output,
    )
