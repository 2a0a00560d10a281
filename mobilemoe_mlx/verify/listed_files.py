"""Is everything there that the manifest lists, with the checksums that it states?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.manifest import ListedFile, read_manifest
from mobilemoe_mlx.files import sha256, visible


@dataclass(frozen=True)
class FilesCheck:
    """How many files were checked, and what is wrong."""

    checked: int
    problems: tuple[str, ...]
    manifest: bool  # whether there is one; a package may travel alone

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_files(export: Path, path: Path, format: str, facts: Mapping[str, Any]) -> FilesCheck:
    """Compare the folder `export`, and all else that it lists, with the manifest at `path`.

    `format`: that of the manifest. `facts`: what it must say besides, as "context" or "tokens".
    """
    if not path.is_file():
        return FilesCheck(0, (), manifest=False)
    root = export.parent
    try:
        manifest = read_manifest(path, format)
    except UserError as error:
        return FilesCheck(0, (str(error),), manifest=True)
    problems = [why for name, file in manifest.files.items() for why in _check(root, name, file)]
    problems += [
        f"{path.name} says {name} {manifest.content.get(name)}, the export is of {value}"
        for name, value in facts.items()
        if manifest.content.get(name) != value
    ]
    listed = {n for n in manifest.files if n.startswith(f"{export.name}/")}
    there = (p for p in visible(export.rglob("*")) if p.is_file())
    present = {str(p.relative_to(root)) for p in there}
    problems += [
        f"{name} is in the package, but not in {path.name}" for name in sorted(present - listed)
    ]
    return FilesCheck(len(manifest.files), tuple(problems), manifest=True)


def _check(root: Path, name: str, file: ListedFile) -> list[str]:
    if "\0" in name:
        return [f"{name!r} is no name of a file"]
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        return [f"{name} lies outside the export"]
    if not path.is_file():
        return [f"{name} is missing"]
    if path.stat().st_size != file.nbytes:
        return [f"{name} has {path.stat().st_size} bytes, not {file.nbytes}"]
    return [] if sha256(path) == file.sha256 else [f"{name} has another checksum"]
