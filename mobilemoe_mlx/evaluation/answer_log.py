"""The answers a model has given, kept on disk so that an evaluation goes on where it was killed."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mobilemoe_mlx.errors import UserError


class AnswerLog:
    """Answered batches by what was asked, appended to a file of JSON lines.

    A batch is found again by a digest of the model, the kind of request and the requests
    themselves; numbers come back bit for bit. A line that was torn when the process was killed is
    dropped, and what it held is computed again. One process at a time holds the file.
    """

    def __init__(
        self,
        path: Path,
        identity: str,
        on_answers: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Open or create the file `path`.

        `identity`: what the answers depend on besides the requests, such as digests of the weights
        and the engine. `on_answers` is called with the number of answers that were found or put.
        Raises UserError where another process holds the file.
        """
        self._identity, self._on_answers = identity, on_answers
        self._asked_at = time.perf_counter()
        self.seconds = 0.0  # that the answers found or put so far took to compute
        # Never truncated by opening: another process may hold it.
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"Another process evaluates in {path.parent} now: wait for it, or choose another "
                "folder."
            ) from None
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

    def key(self, kind: str, requests: Sequence[Any]) -> str:
        """The name of a batch: a digest of all that its answers depend on.

        `kind`: "log_likelihood" or "generate". `requests`: what is asked, in JSON's types or
        dataclasses of them.
        """
        asked = json.dumps([self._identity, kind, list(requests)], default=_plain)
        return hashlib.sha256(asked.encode()).hexdigest()

    def get(self, key: str) -> list[Any] | None:
        """The answers of a batch, or None where it has not been answered yet."""
        found = self._answers.get(key)
        self._asked_at = time.perf_counter()
        if found is None:
            return None
        seconds, answers = found
        self.seconds += seconds
        self._on_answers(len(answers))
        return answers

    def put(self, key: str, answers: list[Any]) -> None:
        """Keep the answers of a batch (JSON's types), which `get` was asked for just before."""
        seconds = round(time.perf_counter() - self._asked_at, 6)
        line = json.dumps({"key": key, "seconds": seconds, "answers": answers})
        self._file.write(line.encode() + b"\n")
        self._file.flush()  # the system has it then: a killed process loses nothing
        self._answers[key] = seconds, answers
        self.seconds += seconds
        self._on_answers(len(answers))

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


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} is not a request in JSON's types")
