"""What an app needs besides the weights: tokenizer, chat template, settings, licence, card."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mobilemoe_mlx import end_tokens, files
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.folder import copy_companions, published_config
from mobilemoe_mlx.checkpoint.settings_files import read_object, settings_files


def write_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, chat template, generation settings, licence and model card into `folder`.

    tokenizer_config.json becomes one by which tokenizer.json decides alone, and config.json and
    generation_config.json name every end of a generation (`end_tokens`). Raises UserError for a
    file that is not the JSON object that an app will need.
    """
    for name in ("tokenizer.json", end_tokens.GENERATION_CONFIG):
        if (path := checkpoint.folder / name).is_file():
            read_object(path)
    copy_companions(checkpoint.folder, folder, "README.md")
    args = dataclasses.replace(checkpoint.args, eos_token_id=checkpoint.end_token_ids())
    config = published_config(args, checkpoint.config)
    files.write_json(folder / "config.json", config)
    for name, text in settings_files(checkpoint, config).items():
        files.write(folder / name, text.encode())
