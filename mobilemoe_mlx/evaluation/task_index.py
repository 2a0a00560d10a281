"""The harness's index of tasks: which names there are, and the YAML of a task, group or tag."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.evaluation.suites import WantedTask, suite_names

# A file of another folder that a YAML takes its values from.
_BORROWED = re.compile(rb"^include: *[\"']?(\.\./[^\s\"']+)", re.MULTILINE)


def task_manager(wanted: Sequence[WantedTask], include: Sequence[Path]) -> Any:
    """The harness's index of tasks: of the folders `include`, and of as much of the harness as the
    wanted tasks need. All of its 14,000 files take ten seconds, and a name that is unknown them.
    """
    from lm_eval.tasks import TaskManager

    for folder in include:
        files.check_folder(folder, "--include")
    names = [each.task for each in wanted]
    manager: Any = None
    index: Mapping[str, Any] = {}
    if include:
        manager = TaskManager(include_path=[*include], include_defaults=False)
        index = manager.task_index
    folders: set[str] = set()
    looked_for: set[str] = set()
    # What a group writes out itself stays absent.
    while absent := {name for name in all_names(index, names) if name not in index} - looked_for:
        looked_for |= absent
        folders |= _folders_that_name(absent)
        with _only(folders):
            manager = TaskManager(include_path=[*include])
        index = manager.task_index
    if all(name in index for name in names):
        return manager
    manager = TaskManager(include_path=[*include])
    for name in names:
        if name not in manager.task_index:
            known = [*manager.all_tasks, *suite_names()]
            places = "".join(f" or in {folder}" for folder in include)
            raise UserError(
                f"There is no task '{name}'{did_you_mean(name, known)} in lm-evaluation-harness "
                f"{importlib.metadata.version('lm-eval')}{places}: `lm_eval ls tasks` lists them."
                + "".join(f"\n  {each}" for each in _unreadable(include))
            )
    return manager


@contextlib.contextmanager
def _only(folders: Collection[str]) -> Iterator[None]:
    """Let the harness read those `folders` of its own tasks alone."""
    from lm_eval.tasks._index import TaskIndex

    every = TaskIndex._iter_yaml_files

    def some(root: Path) -> list[Path]:
        if root != _harness_folder():
            return [*every(root)]
        # In the harness's order, which decides between definitions of the same name.
        return sorted((p for f in folders for p in every(root / f)), key=Path.as_posix)

    TaskIndex._iter_yaml_files = staticmethod(some)
    try:
        yield
    finally:
        TaskIndex._iter_yaml_files = staticmethod(every)


def _harness_folder() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def _folders_that_name(names: Collection[str]) -> set[str]:
    """The folders of the harness's tasks whose files name one of `names`, or take their values from
    such a folder. Reading all files takes a twentieth of the time that parsing them does."""
    root = _harness_folder()
    words = [name.encode() for name in names]
    word = re.compile(rb"(?<![\w-])(?:" + b"|".join(map(re.escape, words)) + rb")(?![\w-])")
    naming: set[str] = set()
    borrowing: set[tuple[str, str]] = set()  # which folder takes values from which
    for place, _, found in os.walk(root):
        folder = os.path.relpath(place, root).split(os.sep)[0]
        for name in found:
            if not name.endswith(".yaml") and "." in name:  # what is included has often no ending
                continue
            text = Path(place, name).read_bytes()
            if any(each in text for each in words) and word.search(text):
                naming.add(folder)
            for other in _BORROWED.findall(text):
                path = os.path.normpath(os.path.join(place, os.fsdecode(other)))
                borrowing.add((folder, os.path.relpath(path, root).split(os.sep)[0]))
    return naming | {folder for folder, other in borrowing if other in naming}


def _unreadable(include: Sequence[Path]) -> Iterator[str]:
    """What is wrong with the YAML files that the harness passes over."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for folder in include:
        for path in files.find(folder, "**/*.yaml"):
            try:
                load_yaml(path, resolve_func=False)
            except Exception as error:  # of YAML, of files that are included, of the harness
                yield f"{path} cannot be read: {' '.join(str(error).split())[:300]}"
        for path in files.find(folder, "**/*.yml"):
            yield f"{path} is not read: the harness takes files whose names end with .yaml."


def all_names(
    index: Mapping[str, Any], names: Sequence[str], above: tuple[str, ...] = ()
) -> Iterator[str]:
    """`names` and those of the members of groups among them, whether they are in `index` or not.

    Raises UserError for a group that is a member of itself; `above` are those that it is in.
    """
    for name in names:
        if name in above:
            raise UserError(f"The group {name} is a member of itself, by {' and '.join(above)}.")
        yield name
        entry = index.get(name)
        if entry is None:
            continue
        members = sorted(entry.tags) if entry.yaml_path is None else _members(entry.cfg)
        named = (m.get("group") or m.get("task") if isinstance(m, dict) else m for m in members)
        members = [each for each in named if isinstance(each, str)]
        yield from all_names(index, members, (*above, name))


def _members(config: Mapping[str, Any] | None) -> list[Any]:
    """What a group's YAML lists: names, and tasks or groups written out."""
    members = (config or {}).get("task")
    return members if isinstance(members, list) else []


def task_configs(index: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """The YAML of a task, or of all tasks of a group or tag."""
    entry = index.get(name)
    if entry is None:
        return
    if entry.yaml_path is None:
        for member in sorted(entry.tags):
            yield from task_configs(index, member)
        return
    yield entry.cfg or {}
    yield from _configs_of_members(index, _members(entry.cfg))


def _configs_of_members(
    index: Mapping[str, Any], members: Sequence[Any]
) -> Iterator[Mapping[str, Any]]:
    for member in members:
        if isinstance(member, Mapping):
            yield member
            name = member.get("group") or member.get("task")
            yield from _configs_of_members(index, _members(member))
        else:
            name = member
        if isinstance(name, str):
            yield from task_configs(index, name)
