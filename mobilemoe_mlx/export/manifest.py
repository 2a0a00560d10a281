"""manifest.json: what an app is told about an export, with the size and checksum of every file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

NAME = "manifest.json"
VERSION = 1

_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class ListedFile:
    """A file as the manifest lists it."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read."""

    content: Mapping[str, Any]
    files: Mapping[str, ListedFile]  # by their paths from the folder that the export lies in


def list_files(root: Path, tops: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Every file in the folders `tops`, by its path from `root`; hidden files are left out."""
    paths = sorted(p for top in tops for p in files.visible(top.rglob("*")) if p.is_file())
    return {
        str(path.relative_to(root)): {
            "bytes": path.stat().st_size,
            "sha256": files.sha256(path),
        }
        for path in paths
    }


def read_manifest(path: Path, format: str) -> Manifest:
    """The manifest at `path`, which must be of an export in `format` and of this version.

    Raises UserError naming the file when it cannot be read, is damaged or of another kind.
    """
    try:
        content = files.read_json(path)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}: export again.") from None
    try:
        kind = content["format"], content["version"]
        listed = {
            str(name): ListedFile(int(file["bytes"]), str(file["sha256"]))
            for name, file in content["files"].items()
        }
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged ({error!r}): export again.") from None
    if kind != (format, VERSION):
        raise UserError(f"{path} is {kind[0]} version {kind[1]}; {format} {VERSION} is known here.")
    return Manifest(content, listed)


def is_manifest(path: Path, format: str) -> bool:
    """Whether `path` is the manifest of an export in `format`, of whatever version."""
    try:
        content = files.read_json(path)
    except UserError:
        return False
    return isinstance(content, dict) and content.get("format") == format
