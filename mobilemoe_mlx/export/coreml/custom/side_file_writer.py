"""The side weight file of a custom-layer package: arrays one after the other, for mapping.

There is no header: the layers' parameters say where each array lies. Every array begins at a
multiple of SIDE_FILE_ALIGNMENT, and the file ends at one; zeros fill the gaps.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.export.coreml.custom.contract import SIDE_FILE_ALIGNMENT

NAME = "weights.bin"  # in the resources folder


class Place(NamedTuple):
    """Where an array lies in the file, in bytes."""

    offset: int
    nbytes: int


class SideFileWriter:
    """Writes the file and its SHA-256 as the arrays come; holds none of them.

    Use it in a `with` block; `nbytes` and `sha256` are final after it. Raises OSError when the disk
    is full; the caller removes what was begun.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self.nbytes = 0

    def __enter__(self) -> SideFileWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._align()
        finally:
            self._file.close()

    @property
    def sha256(self) -> str:
        """Of everything written, in hexadecimal."""
        return self._hash.hexdigest()

    def add(self, array: np.ndarray) -> Place:
        """Append an array of any little-endian type."""
        self._align()
        place = Place(self.nbytes, array.nbytes)
        self._write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return place

    def _align(self) -> None:
        self._write(memoryview(bytes(-self.nbytes % SIDE_FILE_ALIGNMENT)))

    def _write(self, data: memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.nbytes += data.nbytes
