"""`--prompt-file FILE`, for each command that runs on a text."""

from __future__ import annotations

import sys
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError


def add_prompt_file_argument(parser: Any) -> None:
    """Declare it on a parser or a group of one."""
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file; - is stdin"
    )


def read_prompt(path: str) -> str:
    """A file's text ("-": standard input's), without the newline that ends its last line."""
    try:
        if path == "-":
            content = sys.stdin.buffer.read()
        else:
            with open(files.user_path(path), "rb") as file:
                content = file.read()
    except OSError as error:
        raise UserError(f"The prompt file {path} cannot be read: {error.strerror}.") from None
    text = files.decode(content, f"The prompt in {path}")
    return text.removesuffix("\n").removesuffix("\r")
