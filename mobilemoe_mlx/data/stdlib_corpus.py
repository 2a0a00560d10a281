"""A training corpus from the running Python's standard library: code, documentation, questions.

Everything comes from files that every Python installation has; nothing is downloaded or shipped.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.all_or_none import all_or_none
from mobilemoe_mlx.data.pieces import pieces
from mobilemoe_mlx.data.stdlib_modules import family, is_heldout, is_public, library_modules
from mobilemoe_mlx.data.stdlib_pages import pages, topics
from mobilemoe_mlx.data.stdlib_questions import questions
from mobilemoe_mlx.errors import UserError

# Characters of a training record of code or docs at most. A small batch would otherwise lie in one
# module, and its gradient say more of that module than of the language.
PIECE = 2000


def build_stdlib_corpus(folder: str | Path) -> dict[str, Any]:
    """Write {code,docs,qa}.{train,heldout}.jsonl into `folder`; about 10 seconds on one core.

    Records of code and docs are {"text", "source"}, those of qa {"messages", "source"}. Texts to
    train on are cut into pieces of at most `PIECE` characters; held-out ones are whole. A module's
    records are all in the same split, in all three kinds. The same Python gives the same files.

    Returns {"python", "heldout_modules", "train", "heldout"}; the last two map each kind to its
    numbers of "records" and "characters". Raises UserError when this Python has no library sources.
    """
    folder = files.user_path(folder)
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = list(library_modules(library))
    if not modules:
        raise UserError(
            f"{library} holds no Python sources, so no corpus can be made from it; "
            "use a Python installed with its standard library's .py files."
        )
    kinds: dict[str, Iterable[dict[str, Any]]] = {
        "code": ({"text": m.text, "source": m.name} for m in modules),
        "docs": [*pages(modules, library), *topics()],
        "qa": (record for m in modules if is_public(m.name) for record in questions(m)),
    }
    stats: dict[str, Any] = {"python": sys.version.split()[0]}
    stats["heldout_modules"] = sorted({family(m.name) for m in modules if is_heldout(m.name)})
    stats |= {"train": {}, "heldout": {}}
    targets = [folder / f"{kind}.{split}.jsonl" for kind in kinds for split in ("train", "heldout")]
    with all_or_none(targets, folder / ".corpus.partial") as work:
        for kind, records in kinds.items():
            splits: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
            for record in records:
                if is_heldout(record["source"]):
                    splits["heldout"].append(record)
                else:
                    splits["train"].extend(_in_pieces(record))
            for split, members in splits.items():
                _write_jsonl(work / f"{kind}.{split}.jsonl", members)
                characters = sum(map(_characters, members))
                stats[split][kind] = {"records": len(members), "characters": characters}
    return stats


def _in_pieces(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "text" not in record:
        yield record
        return
    for piece in pieces(record["text"], PIECE):
        yield {**record, "text": piece}


def _characters(record: dict[str, Any]) -> int:
    if "text" in record:
        return len(record["text"])
    return sum(len(message["content"]) for message in record["messages"])


def _write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one record per line."""
    lines = (json.dumps(record) + "\n" for record in records)
    files.write(path, "".join(lines).encode())
