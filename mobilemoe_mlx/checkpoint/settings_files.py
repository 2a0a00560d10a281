"""The small files by which other programs tokenize, chat and end an answer as this package does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilemoe_mlx import end_tokens, files
from mobilemoe_mlx.chat_format import written_chat_template
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.errors import UserError


def settings_files(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of generation_config.json, tokenizer_config.json and chat_template.jinja.

    generation_config.json names every end of `config`. With a tokenizer, tokenizer_config.json
    becomes one by which tokenizer.json decides alone (`plain_settings`), and the chat template gets
    a file. Raises UserError for a file that is not the JSON object that is needed.
    """
    from mobilemoe_mlx.tokenizer_config import plain_settings  # transformers is slow

    folder = checkpoint.folder
    generation = end_tokens.generation_config(folder, dict(config))
    out = {end_tokens.GENERATION_CONFIG: files.json_text(generation)}
    settings_file = folder / "tokenizer_config.json"
    if not settings_file.is_file() and not (folder / "tokenizer.json").is_file():
        return out
    settings = read_object(settings_file) if settings_file.is_file() else {}
    out[settings_file.name] = files.json_text(plain_settings(settings))
    template = written_chat_template(folder)
    if isinstance(template, dict):
        template = template.get("default")
    if template is not None and not (folder / "chat_template.jinja").exists():
        out["chat_template.jinja"] = template
    return out


def read_object(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's JSON file that is needed as an object."""
    content = files.parse_json(files.read_text(path), f"{path.name} of the checkpoint")
    if not isinstance(content, dict):
        raise UserError(f"{path.name} of the checkpoint is not a JSON object.")
    return content
