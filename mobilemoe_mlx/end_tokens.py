"""Which tokens end a generation: the union of all places where a checkpoint says so.

config.json, generation_config.json (an id or a list in each), tokenizer_config.json and
special_tokens_map.json (the name of the eos token), and the tokenizer's own end-of-text and
end-of-turn tokens. Read from the files alone, so that an export needs no tokenizer library.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

END_OF_TEXT = "<|end_of_text|>"
EOT = "<|eot|>"  # end of turn
GENERATION_CONFIG = "generation_config.json"

# Where a tokenizer's special tokens are named; the first file that names one decides.
_NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token")


def token_ids(where: str, value: Any) -> tuple[int, ...]:
    """An `eos_token_id` of JSON, which is null, an id or a list of ids, as a tuple.

    Raises UserError, beginning with `where`, for anything else.
    """
    values = [] if value is None else value if isinstance(value, list) else [value]
    for token in values:
        if isinstance(token, bool) or not isinstance(token, int):
            raise UserError(f"{where} is {token!r}; token ids are whole numbers.")
    return tuple(values)


def of_folder(folder: Path, config_ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Every end of a checkpoint: those of its config.json first, then what the other files add.

    Raises UserError for an id of generation_config.json that is none of the model's.
    """
    found = dict.fromkeys(config_ids)
    for token in _of_generation_config(folder / GENERATION_CONFIG):
        if not 0 <= token < vocab_size:
            raise UserError(
                f"{GENERATION_CONFIG}: eos_token_id is {token}; the vocabulary has {vocab_size} "
                "entries."
            )
        found[token] = None
    found |= dict.fromkeys(t for t in of_tokenizer(folder) if t < vocab_size)
    return tuple(found)


def of_tokenizer(folder: Path) -> list[int]:
    """The ends that the tokenizer files of `folder` name, sorted; none without tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return []
    names = {END_OF_TEXT, EOT}
    for file in _NAMING_FILES:
        if (name := _named(folder / file).get("eos_token")) is not None:
            names.add(name)
    status = path.stat()
    return _ids(path, status.st_mtime_ns, status.st_size, frozenset(names))


def special_tokens(folder: Path) -> dict[str, str]:
    """Role ("bos_token", "eos_token", ...) -> the token that the folder's files name for it."""
    found: dict[str, str] = {}
    for file in reversed(_NAMING_FILES):
        found |= _named(folder / file)
    return found


def generation_config(folder: Path | None, config: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json's content for a model of `config`: that of `folder`, if it has one,
    with every end that `config` names. Raises UserError when it is no JSON object."""
    path = None if folder is None else folder / GENERATION_CONFIG
    if path is None or not path.is_file():
        return {n: config[n] for n in ("bos_token_id", "eos_token_id") if n in config}
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    ends = token_ids("config.json: eos_token_id", config.get("eos_token_id"))
    known = token_ids(f"{path.name}: eos_token_id", content.get("eos_token_id"))
    if missing := [token for token in ends if token not in known]:
        content["eos_token_id"] = [*known, *missing]
    return content


def _of_generation_config(path: Path) -> tuple[int, ...]:
    if not path.is_file():
        return ()
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return token_ids(f"{path.name}: eos_token_id", content.get("eos_token_id"))


def _named(path: Path) -> dict[str, str]:
    """Role -> token, of a file that writes a token as a string or as an object with "content"."""
    content = files.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    found = {}
    for role in _SPECIAL:
        token = content.get(role)
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str):
            found[role] = name
    return found


@functools.lru_cache(maxsize=4)
def _ids(path: Path, _modified: int, _size: int, names: frozenset[str]) -> list[int]:
    """Ids of `names` in a tokenizer.json; a large file is parsed once."""
    content = files.read_json(path)
    try:
        vocabulary = content["model"].get("vocab", {})
        if isinstance(vocabulary, list):  # unigram: [piece, score] by id
            ids = {index for index, (piece, _) in enumerate(vocabulary) if piece in names}
        else:
            ids = {vocabulary[name] for name in names if name in vocabulary}
        ids |= {t["id"] for t in content.get("added_tokens") or [] if t["content"] in names}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} describes no tokenizer: download or train it again.") from None
    return sorted(ids)
