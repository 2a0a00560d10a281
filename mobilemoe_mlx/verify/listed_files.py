"""Is everything there that the manifest lists, with the checksums that it states?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx.export.coreml.resources import FORMAT, MANIFEST, VERSION, resources_name, sha256
from mobilemoe_mlx.files import visible


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


def check_files(package: Path, facts: Mapping[str, Any]) -> FilesCheck:
    """Compare the package and its resources folder with the manifest there.

    `facts`: what the manifest must say besides, as "context" or "tokens".
    """
    path = package.parent / resources_name(package) / MANIFEST
    if not path.is_file():
        return FilesCheck(0, (), manifest=False)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {str(n): (f["bytes"], f["sha256"]) for n, f in manifest["files"].items()}
        kind = (manifest["format"], manifest["version"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return FilesCheck(0, (f"{path.name} is not a manifest of an export",), manifest=True)
    if kind != (FORMAT, VERSION):
        return FilesCheck(
            0, (f"{path.name} is of {kind[0]} version {kind[1]}, not {VERSION}",), manifest=True
        )
    problems = [why for name, file in files.items() for why in _check(package.parent, name, file)]
    problems += [
        f"{path.name} says {name} {manifest.get(name)}, the package is of {value}"
        for name, value in facts.items()
        if manifest.get(name) != value
    ]
    listed = {n for n in files if n.startswith(f"{package.name}/")}
    there = (p for p in visible(package.rglob("*")) if p.is_file())
    present = {str(p.relative_to(package.parent)) for p in there}
    problems += [
        f"{name} is in the package, but not in {path.name}" for name in sorted(present - listed)
    ]
    return FilesCheck(len(files), tuple(problems), manifest=True)


def _check(root: Path, name: str, file: tuple[int, str]) -> list[str]:
    if "\0" in name:
        return [f"{name!r} is no name of a file"]
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        return [f"{name} lies outside the export"]
    if not path.is_file():
        return [f"{name} is missing"]
    size, checksum = file
    if path.stat().st_size != size:
        return [f"{name} has {path.stat().st_size} bytes, not {size}"]
    return [] if sha256(path) == checksum else [f"{name} has another checksum"]
