"""The harness's index of tasks: which names there are, and the YAML of a task, group or tag."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.evaluation.suites import WantedTask, suite_names


def task_manager(wanted: Sequence[WantedTask], include: Sequence[Path]) -> Any:
    """The harness's index of tasks: of the folders `include` alone, where that is enough."""
    from lm_eval.tasks import TaskManager

    for folder in include:
        if not folder.is_dir():
            raise UserError(f"--include {folder}: there is no such folder.")
    names = [each.task for each in wanted]
    if include:
        own = TaskManager(include_path=[*include], include_defaults=False)
        if all(name in own.task_index for name in all_names(own.task_index, names)):
            return own
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


def _unreadable(include: Sequence[Path]) -> Iterator[str]:
    """What is wrong with the YAML files that the harness passes over."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for folder in include:
        for path in files.find(folder, "**/*.yaml"):
            try:
                load_yaml(path, resolve_func=False)
            except Exception as error:  # of YAML, of files that are included, of the harness
                yield f"{path} cannot be read: {' '.join(str(error).split())[:300]}"


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
