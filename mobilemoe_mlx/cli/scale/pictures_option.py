"""The option `--pictures`, the same in every task of `scale`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from mobilemoe_mlx import files


def add_pictures_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--pictures FOLDER`; the task calls `check_pictures` first, `write_pictures` last."""
    parser.add_argument("--pictures", metavar="FOLDER", help="write pictures into this folder too")


def check_pictures(option: str | None) -> None:
    """Before the work starts: raises UserError where pictures can be neither drawn nor written."""
    if option is None:
        return
    from mobilemoe_mlx.png_pictures import check_can_draw

    check_can_draw("--pictures")
    files.output_folder(option)


def write_pictures(option: str | None, draw: Callable[[], dict[str, bytes]]) -> list[str]:
    """Draw and write what `--pictures` asks for; the paths that were written."""
    if option is None:
        return []
    from mobilemoe_mlx.scaling.pictures import write

    return [str(path) for path in write(option, draw())]
