"""The published chat format: its control tokens and template; and the template of a tokenizer's
folder. Without transformers and mlx-lm, which take seconds to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.end_tokens import END_OF_TEXT, EOT
from mobilemoe_mlx.tokenizer_file import settings

BEGIN_OF_TEXT = "<|begin_of_text|>"
HEADER_START = "<|header_start|>"
HEADER_END = "<|header_end|>"
SPECIAL_TOKENS = (BEGIN_OF_TEXT, END_OF_TEXT, HEADER_START, HEADER_END, EOT)

CHAT_TEMPLATE = (
    f"{{{{ '{BEGIN_OF_TEXT}' }}}}"
    "{% for message in messages %}"
    f"{{{{ '{HEADER_START}' + message['role'] + '{HEADER_END}\\n\\n' }}}}"
    f"{{{{ message['content'] + '{EOT}' }}}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    f"{{{{ '{HEADER_START}assistant{HEADER_END}\\n\\n' }}}}"
    "{% endif %}"
)


def written_chat_template(folder: Path) -> str | dict[str, str] | None:
    """The template that chats with the tokenizer of `folder` are written by, if it has one.

    That of chat_template.jinja, else of tokenizer_config.json, else of the older
    chat_template.json; several by name where the file has several, of which chats take "default".
    """
    if (file := folder / "chat_template.jinja").is_file():
        return files.read_text(file)
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = settings(folder / name).get("chat_template")
        if isinstance(template, list):
            return {entry["name"]: entry["template"] for entry in template}
        if template is not None:
            return template
    return None


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of `text` as plain text: no BOS, and "<|eot|>" is just characters.

    `tokenizer`: one of transformers or mlx-lm, or a PromptTokenizer.

    Lone surrogates, which UTF-8 cannot hold, are read as U+FFFD.
    """
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return list(
        tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    )
