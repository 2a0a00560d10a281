"""What engines are measured on: the standard library's documentation, as tokens."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

from mobilemoe_mlx.config import ModelArgs

# Long pages of every Python, importing which does nothing.
_MODULES = (
    "argparse",
    "collections",
    "csv",
    "datetime",
    "json",
    "logging",
    "pathlib",
    "random",
    "shutil",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "unittest",
    "zipfile",
)


def real_tokens(folder: Path, args: ModelArgs) -> list[int]:
    """Documentation by the checkpoint's tokenizer or, without one, its bytes as token ids."""
    plain = vars(pydoc)["plaintext"]  # without overstrikes; types do not know it
    text = "\n".join(pydoc.render_doc(name, renderer=plain) for name in _MODULES)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # addresses, which differ from run to run
    if not (folder / "tokenizer.json").is_file():
        return [byte % args.vocab_size for byte in text.encode()]
    from mobilemoe_mlx.chat_format import encode_text
    from mobilemoe_mlx.tokenizer import load_tokenizer

    return [token % args.vocab_size for token in encode_text(load_tokenizer(folder), text)]


def window(tokens: list[int], start: int, count: int) -> list[int]:
    """`count` tokens from `start` on, from the beginning again where they end."""
    return [tokens[(start + i) % len(tokens)] for i in range(count)]
