"""Evaluations beside each other: what each model gains and loses against the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation.paired import (
    Interval,
    McNemar,
    average_interval,
    holm,
    is_right_or_wrong,
    mcnemar,
    paired_interval,
)
from mobilemoe_mlx.evaluation.results import Documents, Results

# The harness keeps the logarithm of each document's probability for its metric "perplexity".
_MEASURES = {"perplexity": "log-likelihood"}


@dataclass(frozen=True)
class Difference:
    """One metric of one task: a model against the base."""

    task: str
    metric: str  # as it is for one question
    higher_is_better: bool
    questions: int
    base: float  # mean over the questions
    other: float
    difference: Interval  # other - base
    test: McNemar | None  # of metrics that are 0 or 1
    p_holm: float | None  # its p, corrected for all such metrics of this model


@dataclass(frozen=True)
class Average:
    """A metric that several tasks have: the mean over tasks of the difference."""

    metric: str
    tasks: int
    difference: Interval


@dataclass(frozen=True)
class ComparedModel:
    """A model against the base."""

    name: str
    differences: tuple[Difference, ...]
    averages: tuple[Average, ...]


@dataclass(frozen=True)
class Comparison:
    """Models against the first one."""

    base: str
    described: dict[str, str]  # by name, of the base too: size, form and engine
    models: tuple[ComparedModel, ...]
    left_out: tuple[str, ...]  # metrics that are no mean over questions

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return dataclasses.asdict(self)


def check_enough(names: Collection[str]) -> None:
    """Raise UserError for fewer than two models or evaluations."""
    if len(names) < 2:
        raise UserError("There is nothing to compare: name two models or evaluations at least.")


def compare(evaluations: Mapping[str, Results]) -> Comparison:
    """Compare evaluations of the same tasks; the first is the base.

    Tasks that all of them have are compared. Raises UserError where these are none, where a model
    was asked other questions, and for fewer than two evaluations.
    """
    check_enough(evaluations)
    (base_name, base), *others = evaluations.items()
    tasks = [task for task in base.documents if all(task in r.documents for _, r in others)]
    if not tasks:
        raise UserError(
            f"{base_name} and {', '.join(name for name, _ in others)} have no task in common: "
            "evaluate them on the same tasks."
        )
    for name, other in others:
        _check_same_questions(base_name, base, name, other, tasks)
    left_out = []
    scores: dict[tuple[str, str], list[np.ndarray]] = {}
    for task in tasks:
        for metric in base.documents[task].values:
            each = [_values(r.documents[task], metric) for r in evaluations.values()]
            if any(values is None for values in each):
                left_out.append(f"{task}: {_plain(metric)}")
            else:
                scores[task, metric] = [values for values in each if values is not None]
    models = tuple(
        _compared(name, base, {key: (values[0], values[i]) for key, values in scores.items()})
        for i, (name, _) in enumerate(others, start=1)
    )
    described = {name: results.described for name, results in evaluations.items()}
    return Comparison(base_name, described, models, tuple(left_out))


def _compared(
    name: str, of: Results, pairs: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]
) -> ComparedModel:
    tests = {
        key: mcnemar(*pair) for key, pair in pairs.items() if all(map(is_right_or_wrong, pair))
    }
    corrected = holm({f"{task} {metric}": test.p for (task, metric), test in tests.items()})
    differences = tuple(
        Difference(
            task=task,
            metric=_plain(metric),
            higher_is_better=_higher_is_better(of, task, metric),
            questions=len(base),
            base=float(base.mean()),
            other=float(other.mean()),
            difference=paired_interval(base, other),
            test=tests.get((task, metric)),
            p_holm=corrected.get(f"{task} {metric}"),
        )
        for (task, metric), (base, other) in pairs.items()
    )
    by_metric: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for (_, metric), pair in pairs.items():
        by_metric.setdefault(_plain(metric), []).append(pair)
    averages = tuple(
        Average(metric, len(found), average_interval(found))
        for metric, found in by_metric.items()
        if len(found) > 1
    )
    return ComparedModel(name, differences, averages)


def _higher_is_better(results: Results, task: str, metric: str) -> bool:
    name = metric.partition(",")[0]
    return name in _MEASURES or results.tasks[task].higher_is_better.get(name, True)


def _values(documents: Documents, metric: str) -> np.ndarray | None:
    """A value for each question, float64; None where the metric has no such thing."""
    given = documents.values.get(metric)
    if not given:
        return None
    if metric.startswith("brier_score,"):
        if not all(map(_is_choice, given)):
            return None
        return np.array([_brier(right, shares) for right, shares in given])
    if not all(isinstance(value, int | float) for value in given):
        return None
    return np.array(given, np.float64)


def _is_choice(value: Any) -> bool:
    """Whether a value is the right choice and the probabilities of all choices."""
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], list)):
        return False
    right, shares = value
    numbers = all(isinstance(share, int | float) for share in shares)
    return numbers and isinstance(right, int) and 0 <= right < len(shares)


def _brier(right: int, shares: Sequence[float]) -> float:
    """Squared distance of the probabilities of all choices from 1 for the right one (0 to 2)."""
    wanted = np.zeros(len(shares))
    wanted[right] = 1
    return float(np.square(np.array(shares) - wanted).sum())


def _plain(metric: str) -> str:
    """The harness' "acc,none" as people write it."""
    name, _, filter_name = metric.partition(",")
    name = _MEASURES.get(name, name)
    return name if filter_name in ("", "none") else f"{name} ({filter_name})"


def _check_same_questions(
    base_name: str, base: Results, name: str, other: Results, tasks: Sequence[str]
) -> None:
    if base.settings.chat != other.settings.chat:
        chat, plain = (base_name, name) if base.settings.chat else (name, base_name)
        raise UserError(
            f"{chat} was asked through its chat template and {plain} was not: evaluate both alike."
        )
    for task in tasks:
        shots = [results.tasks[task].shots for results in (base, other)]
        if len({*shots}) > 1:
            raise UserError(
                f"{task} was asked with {shots[0]} examples of {base_name} and with {shots[1]} of "
                f"{name}: evaluate both with the same --shots."
            )
        if base.documents[task].hashes != other.documents[task].hashes:
            raise UserError(
                f"{base_name} and {name} were not asked the same questions of {task} in the same "
                "words: evaluate both with the same --limit, data, task files and chat template."
            )
