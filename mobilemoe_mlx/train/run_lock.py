"""One process at a time trains in a run's folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.file_lock import take_lock


class RunLock:
    """Holds a run's folder until the block ends, or the process does. No file is made for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: int | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._held is not None:
            os.close(self._held)

    def take(self, *, make: bool = False) -> None:
        """Hold the folder from here, if it is there or with `make`.

        Raises UserError where another process holds it.
        """
        if make:
            self._folder.mkdir(parents=True, exist_ok=True)
        if self._held is not None or not self._folder.is_dir():
            return
        self._held = os.open(self._folder, os.O_RDONLY)
        if not take_lock(self._held):
            raise UserError(
                f"Another process trains in {self._folder}: wait until it ends, or choose another "
                "folder with --run."
            )
