"""Read the side weight file of a custom-layer package, once its size and checksum are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.files import sha256


class SideFile:
    """The files of a resources folder that layers name; mapped, never held whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checked: dict[str, tuple[int, str]] = {}  # name -> size and SHA-256

    def check(self, name: str, nbytes: int, checksum: str) -> None:
        """Raise UserError unless the file is there with this size and SHA-256 (read once)."""
        path = self._folder / name
        if Path(name).name != name or not path.is_file():
            raise UserError(f"{path} is missing: the package has its weights there.")
        if name not in self._checked:
            self._checked[name] = path.stat().st_size, sha256(path)
        if self._checked[name] != (nbytes, checksum):
            raise UserError(
                f"{path} is not the file that the package was exported with (its size or checksum "
                "differs); export again."
            )

    def read(self, name: str, offset: int, nbytes: int) -> np.ndarray:
        """A checked file's bytes from `offset` on, uint8 [nbytes]."""
        return np.memmap(self._folder / name, np.uint8, "r", offset, (nbytes,))
