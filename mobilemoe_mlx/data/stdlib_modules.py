"""The standard library's modules, and which of them are held out."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELDOUT_SHARE = 0.05  # of the top-level modules, and of the language reference's topics

# Not prose or code worth learning from: tests, generated tables, this machine's build settings.
_SKIPPED_FOLDERS = {"__pycache__", "test", "tests", "idle_test", "_bundled", "pydoc_data"}
_SKIPPED_FILE = re.compile(
    r"^(__hello__|__phello__|_sysconfigdata\w*|_casefix|stringprep|entities|this)\.py$"
)
_GENERATED_TABLE = "gencodec.py"  # named in the docstring of each of encodings' generated tables

# Modules that repeat one another's text are held out together.
_FAMILIES = dict.fromkeys(("posix", "nt", "posixpath", "ntpath", "genericpath"), "os")

ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]{4,}")
"""An object's address in a printed value: another one in each process."""


@dataclass(frozen=True)
class Module:
    """A module's dotted name and its source."""

    name: str
    text: str


def library_modules(library: Path) -> Iterator[Module]:
    """Yield the library's modules worth reading, sorted by path; nothing is imported."""
    # Not site-packages, nor what this system adds to the library.
    tops = [path for path in library.iterdir() if path.stem in sys.stdlib_module_names]
    paths = [path for top in tops for path in (top.rglob("*.py") if top.is_dir() else [top])]
    for path in sorted(path for path in paths if path.suffix == ".py"):
        parts = path.relative_to(library).with_suffix("").parts
        if _SKIPPED_FOLDERS.intersection(parts) or _SKIPPED_FILE.match(path.name):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        generated = parts[0] == "encodings" and _GENERATED_TABLE in text[:500]
        if text.strip() and not generated and str(library) not in text:
            name = ".".join(parts).removesuffix(".__init__")
            yield Module(name, ADDRESS.sub("", text))


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def family(source: str) -> str:
    """Return the name whose hash decides a record's split: that of its top-level module.

    A private module goes with the public one it serves: _pydecimal with decimal.
    """
    top = source.split(".")[0]
    if top.startswith("_"):
        bare = top.strip("_")
        candidates = (bare, bare.removeprefix("py"), bare.split("_")[0])
        top = next((name for name in candidates if name in sys.stdlib_module_names), bare)
    return _FAMILIES.get(top, top)


def is_heldout(source: str) -> bool:
    return fraction(family(source)) < HELDOUT_SHARE


def fraction(key: str) -> float:
    """Return a number in [0, 1) that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
