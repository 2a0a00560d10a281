"""What the commands that draw agree on: matplotlib is an extra, and pictures are PNG."""

from __future__ import annotations

import io
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError


def check_can_draw(option: str, file: str | None = None) -> None:
    """Before the work starts: raises UserError, naming the command's `option`, without matplotlib
    or where `file` cannot be written."""
    if file is not None:
        files.output_file(file, option)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            f"{option} needs matplotlib: `pip install --editable '.[plot]'` in the checkout."
        ) from None


def png_bytes(figure: Any) -> bytes:
    """A matplotlib figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
