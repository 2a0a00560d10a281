"""Which tasks are asked for: suites by name (suites/*.toml), and tasks by theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.tables import Count, CountOrZero, Text

_FOLDER = Path(__file__).with_name("suites")


@dataclass(frozen=True)
class WantedTask:
    """A task or group of the harness, and how it is to be run."""

    task: Text
    benchmark: str = ""  # what the paper calls it
    metric: str = ""  # "acc_norm,none": that of the table; empty: all
    shots: CountOrZero | None = None  # examples before each question; None: the harness's default
    limit: Count | None = None  # how many questions of each task at most, the first ones
    why: str = ""  # where `shots` comes from, where the paper does not say


@dataclass(frozen=True)
class Missing:
    """A benchmark of the paper that the harness does not have."""

    benchmark: Text
    why: Text


@dataclass(frozen=True)
class Suite:
    """Tasks that are run together under one name."""

    about: Text
    tasks: tuple[WantedTask, ...]
    metric_note: str = ""
    chat: bool = False  # whether questions are asked through the chat template
    mean: Literal["base", "sft"] | None = None  # which published mean its own compares with
    missing: tuple[Missing, ...] = ()


def suite_names() -> list[str]:
    """The names of all suites."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read_suite(name: str) -> Suite:
    """The suite `name`; raises UserError for an unknown one, naming the nearest."""
    if name not in suite_names():
        raise UserError(
            f"There is no suite '{name}'{did_you_mean(name, suite_names())}. "
            f"Suites: {', '.join(suite_names())}."
        )
    path = _FOLDER / f"{name}.toml"
    return tables.read(Suite, files.read_toml(path), f"{path.name}")


def wanted_tasks(
    suite: str | None, tasks: Sequence[str], shots: int | None, limit: int | None
) -> Suite:
    """What is asked for: a suite, or tasks by name, or both; `shots` and `limit` go before a
    suite's own.

    Raises UserError for nothing, for a suite in the place of a task, and for numbers below 0 and 1.
    """
    if suite is None and not tasks:
        raise UserError(
            "Which tasks? Give --tasks NAME,NAME of lm-evaluation-harness, or --suite with one of "
            f"{', '.join(suite_names())}."
        )
    if shots is not None and shots < 0:
        raise UserError(f"--shots is {shots}; it must be 0 or more.")
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; it must be 1 or more.")
    for name in tasks:
        if name in suite_names():
            raise UserError(f"'{name}' is a suite: give it with --suite {name}.")
    base = Suite("tasks by name", ()) if suite is None else read_suite(suite)
    asked = (*base.tasks, *map(WantedTask, tasks))
    if shots is not None:
        asked = tuple(dataclasses.replace(each, shots=shots, why="--shots") for each in asked)
    if limit is not None:
        asked = tuple(dataclasses.replace(each, limit=limit) for each in asked)
    return dataclasses.replace(base, tasks=asked)
