"""Write a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def temporary_name(path: Path) -> Path:
    """The name under which `write` begins `path`; a killed process may leave it."""
    return path.with_name(path.name + ".tmp")


def write(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, rename. Raises OSError, leaving no part behind."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
