"""What an app needs besides the weights: tokenizer, chat template, settings, licence, card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mobilemoe_mlx import end_tokens, files
from mobilemoe_mlx.chat_format import written_chat_template
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.folder import copy_companions, published_config
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer_config import plain_settings


def write_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, chat template, generation settings, licence and model card into `folder`.

    tokenizer_config.json becomes one by which tokenizer.json decides alone (`plain_settings`), and
    config.json and generation_config.json name every end of a generation (`end_tokens`). Raises
    UserError for a file that is not the JSON object that an app will need.
    """
    copy_companions(checkpoint.folder, folder, end_tokens.GENERATION_CONFIG, "README.md")
    for name in ("tokenizer.json", end_tokens.GENERATION_CONFIG):
        if (folder / name).is_file():
            _read_object(folder / name)
    args = dataclasses.replace(checkpoint.args, eos_token_id=checkpoint.end_token_ids())
    config = published_config(args, checkpoint.config)
    files.write_json(folder / "config.json", config)
    files.write_json(
        folder / end_tokens.GENERATION_CONFIG, end_tokens.generation_config(folder, config)
    )
    settings_file = folder / "tokenizer_config.json"
    if settings_file.is_file() or (folder / "tokenizer.json").is_file():
        settings = _read_object(settings_file) if settings_file.is_file() else {}
        files.write_json(settings_file, plain_settings(settings))
        template = written_chat_template(checkpoint.folder)
        if isinstance(template, dict):
            template = template.get("default")
        if template is not None and not (folder / "chat_template.jinja").exists():
            files.write(folder / "chat_template.jinja", template.encode())


def _read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that an app will need as an object."""
    content = files.parse_json(files.read_text(path), f"{path.name} of the checkpoint")
    if not isinstance(content, dict):
        raise UserError(f"{path.name} of the checkpoint is not a JSON object.")
    return content
