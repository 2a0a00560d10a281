"""Write several files or folders as one: all of them take their names, or none does."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.file_lock import take_lock
from mobilemoe_mlx.files import made_parents


class _NotPutBack(UserError):
    """What was there before could not be put back; it is still in the work folder."""


@contextlib.contextmanager
def all_or_none(targets: Sequence[Path], work: Path) -> Iterator[Path]:
    """Yield the empty folder `work`, whose entries become `targets` when the block ends well.

    `targets` lie in the folder of `work` and have names of their own; the last one stands for all
    in messages. Where the block or a rename fails, the targets are as they were and `work` is gone;
    what a killed process left is put back first. Raises UserError where another process holds
    `work`, and for any OSError (a full disk).
    """
    name = targets[-1]
    try:
        with made_parents(work), _held_alone(work, name):
            _put_back(work, targets)
            _empty(work)
            with _removed(work):
                yield work
                _exchange(work, targets)
    except OSError as error:
        where = error.filename2 or error.filename
        what = ": ".join(str(part) for part in (error.strerror, where) if part)
        raise UserError(
            f"{name} could not be written ({what or error}). Nothing of it was left; make room "
            "or choose another place."
        ) from error


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the name `target` when the block ends well.

    Else `target` is as it was. Raises UserError as `all_or_none` does.
    """
    with all_or_none([target], target.with_name(f".{target.name}.partial")) as work:
        new = work / target.name
        new.mkdir()
        yield new


def write_together(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files, name -> content, into `folder`, which is made where it is absent.

    All of them appear, or none; returns their paths. Raises UserError as `all_or_none` does.
    """
    targets = [folder / name for name in contents]
    with all_or_none(targets, folder / f".{targets[-1].name}.partial") as work:
        for name, content in contents.items():
            files.write(work / name, content)
    return targets


@contextlib.contextmanager
def _held_alone(work: Path, name: Path) -> Iterator[None]:
    """Make the folder `work` and hold it against other processes that write the same."""
    work.mkdir(exist_ok=True)
    held = os.open(work, os.O_RDONLY)
    try:
        is_ours = take_lock(held)
        # The process that held it may have removed it since.
        if not (is_ours and work.exists() and os.stat(work).st_ino == os.fstat(held).st_ino):
            raise UserError(
                f"Another process writes {name.name} now: wait for it, or choose another name."
            )
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def _removed(work: Path) -> Iterator[None]:
    """Remove `work` at the end, unless it has the only copy of something."""
    try:
        yield
    except _NotPutBack:
        raise
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


def _put_back(work: Path, targets: Sequence[Path]) -> None:
    """Undo what a process did that was killed between two renames."""
    for target in targets:
        old = work / "old" / target.name
        if old.exists() and not target.exists():
            os.rename(old, target)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _exchange(work: Path, targets: Sequence[Path]) -> None:
    """Move the old targets to `work`/old and the new ones into place, or change nothing."""
    (work / "old").mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for target in targets:
            if target.exists():
                _move(target, work / "old" / target.name, moved)
            _move(work / target.name, target, moved)
    except BaseException:
        _undo(moved, work, targets[-1])
        raise


def _move(source: Path, target: Path, moved: list[tuple[Path, Path]]) -> None:
    moved.append((source, target))  # first: an interruption may come after the move
    os.rename(source, target)


def _undo(moved: list[tuple[Path, Path]], work: Path, name: Path) -> None:
    try:
        for source, target in reversed(moved):
            if target.exists() and not source.exists():
                os.rename(target, source)
    except OSError as error:
        raise _NotPutBack(
            f"{name} could not be written, nor what was there be put back ({error}): it is in "
            f"{work / 'old'}."
        ) from error
