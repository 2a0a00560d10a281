"""The answers a model has given, kept on disk so that an evaluation goes on where it was killed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.file_lock import take_lock


class AnswerLog:
    """Answered batches by what was asked, appended to a file of JSON lines.

    A batch is found again by a digest of what was asked and the digest of who answered; numbers
    come back bit for bit. A line that was torn when the process was killed is dropped, and what it
    held is computed again. One process at a time holds the file.
    """

    def __init__(self, path: Path, identity: str) -> None:
        """Open or create the file `path`.

        `identity`: a digest of what the answers depend on besides the requests: weights, engine.
        Raises UserError where another process holds the file.
        """
        self._identity = identity
        self._asked_at = time.perf_counter()
        self.seconds = 0.0  # that the answers found or put so far took to compute
        # Never truncated by opening: another process may hold it.
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        if not take_lock(self._file.fileno()):
            self._file.close()
            raise UserError(
                f"Another process evaluates in {path.parent} now: wait for it, or choose another "
                "folder."
            )
        self._answers = self._read()

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file free."""
        self._file.close()

    def get(self, key: str) -> list[Any] | None:
        """The answers of a batch, or None where it has not been answered yet."""
        found = self._answers.get(self._name(key))
        self._asked_at = time.perf_counter()
        if found is None:
            return None
        seconds, answers = found
        self.seconds += seconds
        return answers

    def put(self, key: str, answers: list[Any]) -> None:
        """Keep the answers of a batch (JSON's types), which `get` was asked for just before."""
        seconds = round(time.perf_counter() - self._asked_at, 6)
        name = self._name(key)
        line = json.dumps({"key": name, "seconds": seconds, "answers": answers})
        self._file.write(line.encode() + b"\n")
        self._file.flush()  # the system has it then: a killed process loses nothing
        self._answers[name] = seconds, answers
        self.seconds += seconds

    def _name(self, key: str) -> str:
        return f"{self._identity} {key}"

    def _read(self) -> dict[str, tuple[float, list[Any]]]:
        """What the file holds; a last line without its end is cut off."""
        found: dict[str, tuple[float, list[Any]]] = {}
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                record = json.loads(line)
                found[record["key"]] = float(record["seconds"]), list(record["answers"])
            except (ValueError, TypeError, KeyError):  # a block that never reached the disk
                continue
        self._file.seek(end)
        self._file.truncate()
        return found
