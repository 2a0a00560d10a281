"""JSON Lines: one JSON object per line, read by number, without holding the file in memory."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

_MARK = files.BYTE_ORDER_MARK.encode()


class BadRecord(UserError):
    """A record that cannot be read: the message names its file and line, and says why."""


class JsonLines:
    """The objects of a .jsonl file in the order of its lines; blank lines are none.

    Opening reads the file once, for the lines' positions and the digest. An object is parsed when
    it is asked for, and is exactly what its line says. A byte-order mark may begin any line, as in
    files that were joined. `sha256` is of the content, in hexadecimal digits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("q")  # where each object's line begins, in bytes
        digest = hashlib.sha256()
        position = 0
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                if line.removeprefix(_MARK).strip():
                    self._starts.append(position)
                position += len(line)
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """The object's place for messages, as "line 3 of FILE"; lines are counted from 1."""
        left, number = self._starts[index], 1
        with self.path.open("rb") as file:
            while left:
                block = file.read(min(left, 1 << 20))
                if not block:
                    break
                number += block.count(b"\n")
                left -= len(block)
        return f"line {number} of {self.path}"

    def read(self, index: int) -> dict[str, Any]:
        """The object `index`, counted from 0; raises BadRecord."""
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            return _parse(line)
        except ValueError as error:
            raise BadRecord(f"{self.where(index)} {error}") from None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a .jsonl file, with its place for messages; raises BadRecord."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"line {number} of {path}"
            try:
                if line.removeprefix(_MARK).strip():
                    yield where, _parse(line)
            except ValueError as error:
                raise BadRecord(f"{where} {error}") from None


def _parse(line: bytes) -> dict[str, Any]:
    """The object in a line; raises ValueError that says what the line is instead."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("is UTF-16, not UTF-8: save the file as UTF-8")
    try:
        text = line.removeprefix(_MARK).decode("utf-8").rstrip("\r\n")
        content = json.loads(text, object_pairs_hook=files.without_twins)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"is not UTF-8 text: its byte {error.start + 1} is {byte:#04x}") from None
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else "; the file ends there, so it may not be whole"
        raise ValueError(f"is not valid JSON: {error.msg}, at column {error.colno}{cut}") from None
    except files.KeyTwice:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
        raise ValueError(f"is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"is not a JSON object, but a {type(content).__name__}")
    return content
