"""Signs that a folder is a download which did not finish, and what to do about it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

# What programs that download call a file that they have begun.
_BEGUN = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")
_LFS_POINTER = b"version https://git-lfs"
_LFS_BYTES = 1024  # a pointer is smaller
_NAMED = 4  # files that a message names; the rest are counted


def unfinished(folder: Path) -> str | None:
    """What shows that `folder` was not downloaded whole, and the way to finish; None: nothing does.

    One sentence without its full stop. Looks at names and sizes alone, and at the first bytes of
    small files.
    """
    if not folder.is_dir():
        return None
    repo = hub_repository(folder)
    signs = [*_signs(folder, repo is not None)]
    if not signs:
        return None
    finish = (
        f"`hf download {repo}`, with the network on"
        if repo is not None
        else "the program that began it, or copy all files again"
    )
    return f"the download is not finished ({'; '.join(signs)}). Finish it with {finish}"


def unfinished_file(path: Path) -> str | None:
    """What shows that the file `path` was not downloaded whole; None: nothing does."""
    if path.stat().st_size == 0:
        return "it is empty"
    if path.stat().st_size < _LFS_BYTES and path.read_bytes().startswith(_LFS_POINTER):
        return "it is a pointer of Git LFS, which `git lfs pull` replaces"
    begun = [
        path.name + suffix for suffix in _BEGUN if (path.parent / (path.name + suffix)).exists()
    ]
    return f"its download is not finished ({begun[0]} was begun)" if begun else None


def links_to_nothing(folder: Path) -> str | None:
    """A few words about the links in `folder` whose files are absent; None: there are none.

    What such a link names would otherwise be taken for a file that the checkpoint does without.
    """
    links = [path.name for path in files.links_to_nothing(folder, "*")]
    return f"{_names(links)} leads to nothing" if links else None


def hub_repository(folder: Path) -> str | None:
    """`owner/name` of a snapshot in Hugging Face's cache; None for any other folder."""
    parts = folder.absolute().parts
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/")
    return None


def _signs(folder: Path, is_snapshot: bool) -> Iterator[str]:
    present = [path for path in folder.iterdir() if not path.name.startswith("._")]
    if (links := links_to_nothing(folder)) is not None:
        yield links
    begun = [p for p in present if p.suffix in _BEGUN]
    begun += (folder / ".cache" / "huggingface" / "download").rglob("*.incomplete")
    if is_snapshot:
        begun += (folder.parent.parent / "blobs").glob("*.incomplete")
    if begun:
        yield f"{_names([p.name for p in begun])} was begun"
    weights = [p for p in present if p.suffix == ".safetensors" and p.is_file()]
    small = [p for p in weights if p.stat().st_size < _LFS_BYTES]
    if empty := [p.name for p in small if p.stat().st_size == 0]:
        yield f"{_names(empty)} is empty"
    if pointers := [p.name for p in small if p.read_bytes().startswith(_LFS_POINTER)]:
        yield f"{_names(pointers)} is a pointer of Git LFS, which `git lfs pull` replaces"
    if missing := _missing_shards(folder, [p.name for p in weights]):
        yield f"{_names(missing)} is missing"
    elif is_snapshot and not weights:
        yield "it has no weights"


def _missing_shards(folder: Path, present: list[str]) -> list[str]:
    """Shards that an index names, or that the names of the others imply."""
    wanted: set[str] = set()
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        # What is wrong with an index is said elsewhere.
        with contextlib.suppress(UserError, KeyError, TypeError, AttributeError):
            named = files.read_json(index)["weight_map"].values()
            wanted |= {name for name in named if isinstance(name, str)}
    for name in present:
        if match := _SHARD.fullmatch(name):
            total = int(match["total"])
            wanted |= {
                f"{match['stem']}-{number:05d}-of-{total:05d}.safetensors"
                for number in range(1, min(total, 1000) + 1)
            }
    return sorted(wanted - set(present))


def _names(names: list[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
