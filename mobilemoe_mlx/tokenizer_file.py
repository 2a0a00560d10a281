"""Open a folder's tokenizer.json, which alone decides the ids, by the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mobilemoe_mlx import files
from mobilemoe_mlx.downloads import links_to_nothing, unfinished
from mobilemoe_mlx.errors import UserError


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of `folder`, which neither cuts nor pads a text nor encodes it at random.

    Raises UserError when a file is absent or unreadable, and when the folder asks for its own code.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        if (why := unfinished(folder)) is not None:
            raise UserError(f"{folder} has no tokenizer.json: {why}.")
        raise UserError(
            f"{folder} has no tokenizer.json. Copy it there from the checkpoint it belongs "
            "to, or train one with `mobilemoe tokenizer train`."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception on a file it rejects
        # Only now, since a large vocabulary takes long to parse.
        content = files.read_json(path)
        if not isinstance(content, dict) or "model" not in content:
            raise UserError(f"{path} describes no tokenizer: it has no 'model'.") from None
        raise cannot_be_loaded(folder, error) from error
    if links_to_nothing(folder) is not None:
        raise UserError(f"{folder}: {unfinished(folder)}.")
    _refuse_code(folder)
    tokenizer.no_truncation()  # of a length that was of use elsewhere
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # of training: with it, a text has other tokens each time
    return tokenizer


def decoder_of(tokenizer: Tokenizer) -> Any:
    """The decoder as tokenizer.json describes it; None without one."""
    decoder = tokenizer.decoder
    return None if decoder is None else json.loads(decoder.__getstate__())


def settings(file: Path) -> dict[str, Any]:
    """A JSON object of a tokenizer's folder; {} where there is none."""
    content = files.read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object.")
    return content


def cannot_be_loaded(folder: Path, error: Exception) -> UserError:
    """What to say when a library rejects the tokenizer of `folder`."""
    return UserError(
        f"The tokenizer in {folder} cannot be loaded: {error}. Download or train it again."
    )


def _refuse_code(folder: Path) -> None:
    config = settings(folder / "tokenizer_config.json")
    if "AutoTokenizer" in (config.get("auto_map") or {}):
        raise UserError(
            f"The tokenizer in {folder} asks for code of its own (auto_map in "
            "tokenizer_config.json), and code in a checkpoint is never run. If its tokenizer.json "
            "describes it whole, remove auto_map."
        )
