"""The option `--json`, the same in every command that prints figures."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

_STDOUT = "-"


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--json [FILE]`; the command calls `check_json` first and `write_json` last."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=_STDOUT,
        metavar="FILE",
        help="write the figures to FILE as JSON as well; without FILE, or with -, print JSON in "
        "place of the text",
    )


def check_json(option: str | None) -> None:
    """Before the work starts: raises UserError unless the file of `--json` can be written."""
    if option is None or option == _STDOUT:
        return
    path = files.output_file(option, "--json")
    is_special = path.exists() and not path.is_file()  # a pipe, say
    if path.suffix.lower() != ".json" and not is_special:
        # `info --json MODEL` would replace the model, if it is a file.
        raise UserError(
            f"--json {option}: the file for the figures needs a name that ends in .json. To print "
            "them in place of the text, put --json last."
        )


def prints_json(option: str | None) -> bool:
    """Whether JSON takes the place of the text on standard output."""
    return option == _STDOUT


def write_json(option: str | None, record: Any) -> None:
    """Write `record` (plain JSON values) where `--json` says, whole or not at all."""
    if option == _STDOUT:
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    elif option is not None:
        files.write_json(files.user_path(option), record)
