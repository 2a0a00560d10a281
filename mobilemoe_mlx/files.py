"""Files: what every reader and writer here agrees on.

Text is UTF-8, with or without a byte-order mark. `~` stands for the home folder. An existing path
wins over a pattern, and hidden files (`._data.jsonl` of macOS) are never found by a pattern. A file
is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mobilemoe_mlx.errors import UserError

BYTE_ORDER_MARK = "\ufeff"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MAGIC = re.compile(r"[*?\[]")
_BLOCK = 1 << 20  # bytes read at a time


def user_path(text: str | Path, beside: Path | None = None) -> Path:
    """The path that `text` names, `~` and `~user` expanded; it may be a pattern.

    Raises UserError for a text that is empty or cannot be a path, and for `~user` where there is
    neither a user nor, here or in the folder `beside`, a file or folder of that name.
    """
    if text == "":
        raise UserError("A path is empty; write . for the current folder.")
    if "\0" in str(text):
        raise UserError(f"{str(text)!r} is not a path: it has a NUL character.")
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # there is no user of that name
        first = path.parts[0]
        places = (Path(), beside or Path())
        if any(os.path.lexists(place / first) for place in places) or _MAGIC.search(first):
            return path
        raise UserError(
            f"{path}: there is no user {first[1:]}, and nothing here is named {first}."
        ) from None


def resolved(text: str | Path) -> Path:
    """`user_path(text)` made absolute, its links followed; it need not exist.

    Raises UserError as `user_path` does, and for a link that leads to itself.
    """
    path = user_path(text)
    try:
        return path.resolve()
    except RuntimeError:  # of Python before 3.13
        raise UserError(f"{path} is a link that leads to itself.") from None


def output_folder(text: str | Path) -> Path:
    """The folder that `text` names, which need not exist yet; for a check before the work starts.

    Raises UserError where a file, or a link that leads nowhere, is in its place or above it, and
    where it, or the folder it would be made in, may not be written to.
    """
    path = user_path(text)
    for place in (path, *path.parents):
        if place.is_dir():
            if not os.access(place, os.W_OK):
                raise UserError(f"The folder {place} may not be written to: choose another place.")
            break
        if os.path.lexists(place):
            raise UserError(f"{place} is a file: choose another name for the folder {text}.")
    return path


def output_file(text: str | Path, option: str) -> Path:
    """The file that `text` names, which need not exist yet; for a check before the work starts.

    Raises UserError, naming the `option` that it was given with, for a folder, and where its folder
    is absent or may not be written to.
    """
    path = user_path(text)
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise UserError(f"{option} {text}: not a file in a folder that exists.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {text}: the folder {folder} may not be written to.")
    return path


def check_folder(path: Path, option: str) -> None:
    """Raise UserError where `path`, given with the `option`, is no folder that is there."""
    if path.is_file():
        raise UserError(
            f"{option} {path} is a file: give the folder that it is in, {option} {path.parent}."
        )
    if not path.is_dir():
        raise UserError(f"{option} {path}: there is no such folder.")


def read_text(path: Path) -> str:
    """A UTF-8 file's text without its byte-order mark, line ends as "\\n".

    Raises UserError naming the file when it cannot be read or is not UTF-8.
    """
    try:
        return decode(path.read_bytes(), str(path)).replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None


def decode(content: bytes, where: str) -> str:
    """UTF-8 `content` as text, without a byte-order mark; raises UserError naming `where`."""
    if content.startswith(_UTF16_MARKS):
        raise UserError(f"{where} is UTF-16, not UTF-8: save it as UTF-8.")
    try:
        return content.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text: byte {error.start} is {content[error.start]:#04x}."
        ) from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; raises UserError naming the file and what is wrong in it."""
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # thousands of digits are no TOMLDecodeError
        raise UserError(f"{path} is not valid TOML: {error}.") from None


def read_json(path: Path) -> Any:
    """A JSON file's content; raises UserError as `parse_json` does, naming the file."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """The content of a JSON text; raises UserError naming `where`.

    A key that an object has twice is an error: it would have two values. So are NaN and Infinity,
    which Python's reader takes, though JSON has none.
    """
    try:
        return json.loads(text, object_pairs_hook=without_twins, parse_constant=_refuse_constant)
    except KeyTwice as error:
        raise UserError(f"{where} {error}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON: {error}.") from None


class KeyTwice(ValueError):
    """An object of a JSON text has a key twice; the message goes on from the text's place."""


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values, for `json.loads`; raises KeyTwice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise KeyTwice(f"has '{twice}' twice in one object: remove the wrong one")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


@contextlib.contextmanager
def made_parents(path: Path) -> Iterator[None]:
    """Make the folders above `path`; where the block fails, those that were made go again."""
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # one that something was put into stays
            for parent in made:
                parent.rmdir()
        raise


def find(folder: Path, pattern: str) -> list[Path]:
    """The files that `pattern` names in `folder`, sorted: a path, or one with `*`, `?`, `[...]`.

    `folder` is never a pattern. `**` stands for any number of folders. A part of the pattern that
    exists as it is written is that file or folder, whatever characters its name has. Hidden files
    and folders are found only by a part that begins with a dot. Each file is given once.
    """
    found = (match for match in _found(folder, pattern) if match.is_file())
    return sorted(dict.fromkeys(found))


def links_to_nothing(folder: Path, pattern: str) -> list[Path]:
    """The links among what `find` looks at whose files are absent, sorted."""
    found = _found(folder, pattern)
    return sorted({match for match in found if match.is_symlink() and not match.exists()})


def visible(paths: Iterable[Path]) -> Iterator[Path]:
    """Leave out hidden files, such as the `._name` that macOS keeps beside a file `name`."""
    return (path for path in paths if not path.name.startswith("."))


def walk(folder: Path) -> list[Path]:
    """The files in `folder` and its folders, sorted; nothing hidden, links followed once."""
    return find(folder, "**/*")


def _found(folder: Path, pattern: str) -> Iterator[Path]:
    path = user_path(pattern, folder)
    folder = Path(path.anchor) if path.is_absolute() else folder
    return _matches(folder, path.relative_to(path.anchor).parts)


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for below in _folders(folder, set()):
            yield from _matches(below, rest or ("*",))
    elif os.path.lexists(folder / part):
        yield from _matches(folder / part, rest)
    elif _MAGIC.search(part):
        for name in _names(folder):
            hidden = name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch.fnmatchcase(name, part):
                yield from _matches(folder / name, rest)


def _folders(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """`folder` and those below it, each once though links may lead to it again."""
    try:
        status = folder.stat()
    except OSError:
        return
    key = status.st_dev, status.st_ino
    if key in seen or not folder.is_dir():
        return
    seen.add(key)
    yield folder
    for name in _names(folder):
        if not name.startswith("."):
            yield from _folders(folder / name, seen)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (NotADirectoryError, FileNotFoundError):
        return []
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}.") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def temporary_name(path: Path) -> Path:
    """The name under which `write` begins `path`; a killed process may leave it."""
    return path.with_name(path.name + ".tmp")


def write(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, rename.

    What a link leads to is replaced, not the link; a pipe or device is written to as it is. Raises
    OSError naming the file, leaving no part behind.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def copy(source: Path, target: Path) -> None:
    """Write the content of the file `source` as `target`.

    Raises UserError naming `source` when it cannot be read, and OSError as `write` does.
    """
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {source}: {error.strerror}.") from None
    write(target, content)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON and a newline, as `write` does."""
    write(path, json_text(content).encode())


def json_text(content: Any) -> str:
    """`content` as indented JSON and a newline."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
