"""Do the manifest and the files say the same: every file with its checksum, and every fact?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.manifest import ListedFile, read_manifest
from mobilemoe_mlx.files import sha256, visible

Facts: TypeAlias = Callable[[Mapping[str, ListedFile]], Mapping[str, Any]]

_TOKENIZER = "tokenizer.json"


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


def check_files(
    export: Path, path: Path, root: Path, format: str, facts: Facts, checkpoint: Path
) -> FilesCheck:
    """Compare the folder `export` and that of the manifest at `path` with the manifest.

    `root`: the folder from which the manifest names files. `format`: its own. `facts`: what it must
    say besides, as "context" or "tokens", of an export with the files that it lists.
    The tokenizer must be that of the folder `checkpoint`, if it has one.
    """
    if not path.is_file():
        return FilesCheck(0, (), manifest=False)
    try:
        manifest = read_manifest(path, format)
    except UserError as error:
        return FilesCheck(0, (str(error),), manifest=True)
    problems = [why for name, file in manifest.files.items() for why in _check(root, name, file)]
    for name, value in facts(manifest.files).items():
        problems += _differences(path.name, name, manifest.content.get(name), value)
    for folder, what in {path.parent: "resources", export: "package"}.items():
        there = (p for p in visible(folder.rglob("*")) if p.is_file() and p != path)
        present = {str(p.relative_to(root)) for p in there}
        problems += [
            f"{name} is in the {what}, but not in {path.name}"
            for name in sorted(present - manifest.files.keys())
        ]
    problems += _tokenizer_problem(path.parent / _TOKENIZER, checkpoint / _TOKENIZER)
    return FilesCheck(len(manifest.files), tuple(problems), manifest=True)


def _tokenizer_problem(ours: Path, original: Path) -> list[str]:
    if not original.is_file() or (ours.is_file() and sha256(ours) == sha256(original)):
        return []
    return [f"{ours.parent.name}/{ours.name} is not the checkpoint's"]


def _differences(where: str, name: str, said: Any, fact: Any) -> list[str]:
    """What the manifest says otherwise, in sentences: in tables, key by key."""
    if isinstance(said, dict) and isinstance(fact, dict):
        return [
            problem
            for key in (*fact, *(said.keys() - fact.keys()))
            for problem in _differences(where, f"{name}.{key}", said.get(key), fact.get(key))
        ]
    return [] if said == fact else [f"{where} says {name} {said}, the export is of {fact}"]


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
