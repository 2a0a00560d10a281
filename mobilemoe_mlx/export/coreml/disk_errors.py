"""A full disk as Python reports it, also where coremltools' C++ code meets it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# How the messages of its two writers begin: of weight files, and of packages' folders.
_WRITERS = ("[MIL FileWriter]", "filesystem error")


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raise OSError where coremltools raises RuntimeError because it cannot write a file."""
    try:
        yield
    except RuntimeError as error:
        if any(writer in str(error) for writer in _WRITERS):
            raise OSError(str(error)) from error
        raise
