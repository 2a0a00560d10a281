"""Results of the harness in the form in which they are kept (results.py)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilemoe_mlx.evaluation.results import Documents, Results, TaskResult
from mobilemoe_mlx.evaluation.tasks import LoadedTask, LoadedTasks

if TYPE_CHECKING:
    from lm_eval.api.task import Task


def task_result(
    each: LoadedTask, whole: Mapping[str, Any], seconds: float, truncated: int
) -> TaskResult:
    name = each.name
    metrics, stderr = _split(whole["results"][name])
    better = whole["higher_is_better"][name]
    return TaskResult(
        metrics=metrics,
        stderr=stderr,
        higher_is_better={metric: bool(better.get(metric, True)) for metric in _names(metrics)},
        questions=whole["n-samples"][name]["effective"],
        of_questions=each.of_questions,
        shots=each.shots,
        version=str(whole["versions"][name]),
        seconds=round(seconds, 3),
        truncated=truncated,
        asked_by=each.wanted.task,
    )


def add_groups(
    last: str, loaded: LoadedTasks, found: Mapping[str, Mapping[str, Any]], results: Results
) -> None:
    """The groups whose tasks are all `found` now that the task `last` is."""
    for name, group in loaded.groups.items():
        members = [str(task.task_name) for task in group.get_all_tasks()]
        if last not in members or not all(member in found for member in members):
            continue
        of = [results.tasks[member] for member in members]
        metrics, stderr = _split(group.aggregate(found))
        shots = {each.shots for each in of}
        results.groups[name] = TaskResult(
            metrics=metrics,
            stderr=stderr,
            higher_is_better={
                metric: all(each.higher_is_better.get(metric, True) for each in of)
                for metric in _names(metrics)
            },
            questions=sum(each.questions for each in of),
            of_questions=sum(each.of_questions for each in of),
            shots=shots.pop() if len(shots) == 1 else None,
            version=str(group.version),
            seconds=round(sum(each.seconds for each in of), 3),
            truncated=sum(each.truncated for each in of),
            members=tuple(group.child_names),
        )


def _split(found: Mapping[str, Any]) -> tuple[dict[str, float | None], dict[str, float]]:
    """Metrics and their standard errors out of the harness's "acc,none" and "acc_stderr,none"."""
    metrics: dict[str, float | None] = {}
    stderr: dict[str, float] = {}
    for key, value in found.items():
        name, comma, filter_name = key.partition(",")
        if not comma or not isinstance(value, int | float | np.number):
            continue
        number = float(value)
        if name.endswith("_stderr"):
            if math.isfinite(number):
                stderr[f"{name.removesuffix('_stderr')},{filter_name}"] = number
        else:
            metrics[key] = number if math.isfinite(number) else None
    return metrics, stderr


def _names(metrics: Mapping[str, Any]) -> dict[str, None]:
    """The metrics without their filters."""
    return dict.fromkeys(key.partition(",")[0] for key in metrics)


def _question_hash(sample: Mapping[str, Any]) -> str:
    """Of the document and of how it was asked, examples before it included."""
    return hashlib.sha256((sample["doc_hash"] + sample["prompt_hash"]).encode()).hexdigest()


def documents_of(samples: Sequence[Mapping[str, Any]]) -> Documents:
    """Each metric's value for each document, from the harness's samples, one for each filter."""
    by_filter: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    hashes: tuple[str, ...] = ()
    values: dict[str, tuple[Any, ...]] = {}
    for name, of_filter in by_filter.items():
        hashes = tuple(_question_hash(sample) for sample in of_filter)
        for metric in dict.fromkeys(m for sample in of_filter for m in sample["metrics"]):
            values[f"{metric},{name}"] = tuple(_plain(sample.get(metric)) for sample in of_filter)
    return Documents(hashes, values)


def doubts_of(task: Task, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """What looks wrong with a task, of which the harness says nothing where anybody sees it."""
    from lm_eval.api.task import ConfigurableTask

    doubts = []
    if wrong := _without_right_answer(task, samples):
        doubts.append(
            f"the right answer (doc_to_target) of {wrong:,} questions is none of their choices, so "
            "whatever a model answers counts as wrong."
        )
    own = type(task) is not ConfigurableTask or task.get_config("process_results") is not None
    if not own and task.OUTPUT_TYPE != "generate_until":
        computed = {metric for sample in samples for metric in sample["metrics"]}
        for metric in task._metric_fn_list:
            if metric not in computed:
                doubts.append(
                    f"the harness computes no '{metric}' for tasks of the type {task.OUTPUT_TYPE}."
                )
    return doubts


def _without_right_answer(task: Task, samples: Sequence[Mapping[str, Any]]) -> int:
    """How many questions of several choices have a right answer that is none of them.

    The harness counts any answer to them as wrong, and warns where nobody sees it here.
    """
    own = task.get_config("process_results") is not None
    if task.OUTPUT_TYPE != "multiple_choice" or own or getattr(task, "multiple_input", 0):
        return 0
    by_document = {sample["doc_id"]: sample for sample in samples}.values()
    return sum(
        not _is_one_of(sample["target"], task.doc_to_choice(sample["doc"]))
        for sample in by_document
    )


def _is_one_of(target: Any, choices: Sequence[str]) -> bool:
    if isinstance(target, list):
        return all(_is_one_of(each, choices) for each in target)
    return 0 <= target < len(choices) if isinstance(target, int) else target in choices


def _plain(value: Any) -> Any:
    """A metric's value in JSON's types; None for what is no finite number."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, int | float | str) else str(value)
