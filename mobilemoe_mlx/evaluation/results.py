"""What an evaluation found, and its folder.

OUT/results.json         settings, and of each task and group metrics, standard errors, counts
OUT/per_document.json    of each task, every metric's value for each question, in order
OUT/answers.jsonl        what the model answered, to go on from (answer_log.py)
OUT/samples/TASK.jsonl   with --log-samples: prompts, answers and metrics of each question
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation.suites import WantedTask

_VERSION = 1  # of results.json and per_document.json


@dataclass(frozen=True)
class Adapter:
    """An adapter and what its update is multiplied by."""

    folder: str
    sha256: str
    weight: float


@dataclass(frozen=True)
class Settings:
    """What an evaluation was asked to do; all of it decides its numbers, but for `model`."""

    model: str  # as it was given
    model_sha256: str
    adapters: tuple[Adapter, ...]
    engine: str
    options: dict[str, Any]  # of the engine: those that were given and decide numbers
    suite: str | None
    tasks: tuple[WantedTask, ...]
    chat: bool
    harness: str  # version of lm-evaluation-harness

    def differences(self, other: Settings) -> list[str]:
        """The names of what differs between the two."""
        mine, theirs = _plain(self), _plain(other)
        return [name for name in mine if name != "model" and mine[name] != theirs[name]]


@dataclass(frozen=True)
class TaskResult:
    """One task's or group's scores. Metrics are named as the harness does: "acc,none"."""

    metrics: dict[str, float | None]  # None: not a finite number
    stderr: dict[str, float]  # of the metrics that have one
    higher_is_better: dict[str, bool]
    questions: int  # that were asked
    of_questions: int  # that the data set has
    shots: int | None  # examples before each question; None: they differ within a group
    version: str  # of the task, by the harness
    seconds: float = 0.0  # the model's own, those before a break too
    truncated: int = 0  # texts that were longer than the model takes and lost their beginning
    members: tuple[str, ...] = ()  # of a group
    asked_by: str = ""  # the name that was asked for: its own, its group's or its tag's


@dataclass(frozen=True)
class Documents:
    """One task's values, question by question: what paired statistics need."""

    # SHA-256 of each question's document and prompt, in the order in which they were asked.
    hashes: tuple[str, ...]
    # Metric -> value for each document: a number; a list where the metric is no mean of numbers;
    # None where the document has no value.
    values: dict[str, tuple[Any, ...]]


@dataclass
class Results:
    """An evaluation so far."""

    settings: Settings
    described: str = ""  # what was scored, for a person
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    groups: dict[str, TaskResult] = field(default_factory=dict)
    documents: dict[str, Documents] = field(default_factory=dict)
    finished: bool = False

    def result(self, name: str) -> TaskResult | None:
        """That of a task or group, if it is there."""
        return self.groups.get(name) or self.tasks.get(name)

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json, which leaves out what per_document.json has."""
        return {
            "version": _VERSION,
            "finished": self.finished,
            "settings": _plain(self.settings),
            "described": self.described,
            "tasks": {name: _plain(each) for name, each in self.tasks.items()},
            "groups": {name: _plain(each) for name, each in self.groups.items()},
        }


@dataclass(frozen=True)
class EvaluationFolder:
    """Where an evaluation writes."""

    path: Path

    @property
    def results(self) -> Path:
        """Settings and scores."""
        return self.path / "results.json"

    @property
    def per_document(self) -> Path:
        """Every metric's value for each question."""
        return self.path / "per_document.json"

    @property
    def answers(self) -> Path:
        """The log of answers."""
        return self.path / "answers.jsonl"

    def samples(self, task: str) -> Path:
        """Prompts and answers of one task."""
        return self.path / "samples" / f"{task.replace('/', '_')}.jsonl"

    def check_free(self, resume: bool) -> None:
        """Raise UserError where an evaluation may not begin here, or not go on."""
        if not self.results.is_file():
            if resume:
                raise UserError(
                    f"{self.path} holds no evaluation to go on with: leave out --resume to begin "
                    "one there."
                )
            # What a process leaves that was killed before it had written its settings.
            ours = {self.answers, self.per_document}
            ours |= {files.temporary_name(path) for path in (self.results, self.per_document)}
            if self.path.is_dir() and not ours.issuperset(files.visible(self.path.iterdir())):
                raise UserError(
                    f"{self.path} exists and is no evaluation: choose another folder with --out."
                )
        elif not resume:
            raise UserError(
                f"{self.path} holds an evaluation already: add --resume to go on, or choose "
                "another folder with --out."
            )

    def begun(self, settings: Settings) -> Results | None:
        """What was found in the folder before; None where nothing was begun.

        Raises UserError where the evaluation in the folder was asked to do something else.
        """
        if not self.results.is_file():
            return None
        before = read_results(self.path)
        if changed := before.settings.differences(settings):
            raise UserError(
                f"{self.path} holds an evaluation with other settings ({', '.join(changed)}): "
                "resume with the same, or choose another folder with --out."
            )
        return before

    def write(self, results: Results) -> None:
        """Write results.json and per_document.json, each whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = {
            "version": _VERSION,
            "tasks": {name: _plain(each) for name, each in results.documents.items()},
        }
        files.write(self.per_document, json.dumps(content).encode())
        files.write_json(self.results, results.to_dict())

    def write_samples(self, task: str, samples: Iterable[Mapping[str, Any]]) -> None:
        """Write one task's samples, a JSON line for each."""
        path = self.samples(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(each, ensure_ascii=False, default=str) + "\n" for each in samples)
        files.write(path, "".join(lines).encode(errors="surrogatepass"))


def is_evaluation(folder: str | Path) -> bool:
    """Whether `folder` holds an evaluation, finished or not."""
    return EvaluationFolder(files.user_path(folder)).results.is_file()


def read_results(folder: str | Path) -> Results:
    """The evaluation in `folder`; raises UserError where it is none, or damaged."""
    path = EvaluationFolder(files.user_path(folder))
    if not path.results.is_file():
        raise UserError(f"{path.path} holds no evaluation: it has no {path.results.name}.")
    content = _content(path.results)
    where = f"{path.results}: "
    results = Results(
        settings=tables.read(Settings, content.get("settings"), f"{where}settings"),
        described=str(content.get("described", "")),
        finished=content.get("finished") is True,
    )
    for name, found in (("tasks", results.tasks), ("groups", results.groups)):
        for task, value in _table(content, name, path.results).items():
            found[task] = tables.read(TaskResult, value, f"{where}{name}.{task}")
    if path.per_document.is_file():
        documents = _table(_content(path.per_document), "tasks", path.per_document)
        for task, value in documents.items():
            results.documents[task] = _read_documents(value, f"{path.per_document}: {task}")
    return results


def _content(path: Path) -> dict[str, Any]:
    content = files.read_json(path)
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise UserError(f"{path} is not of an evaluation that this version reads.")
    return content


def _table(content: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    table: dict[str, Any] = content.get(name, {})
    tables.check_table(table, f"{path}: {name}")
    return table


def _read_documents(value: Any, where: str) -> Documents:
    tables.check_keys(value, ("hashes", "values"), where)
    hashes = tables.read_value(tuple[str, ...], value.get("hashes"), f"{where}.hashes")
    values = tables.read_value(dict[str, Any], value.get("values"), f"{where}.values")
    for metric, found in values.items():
        if not isinstance(found, list) or len(found) != len(hashes):
            raise UserError(f"{where}.values.{metric} is no list with a value for each document.")
    return Documents(hashes, {metric: tuple(found) for metric, found in values.items()})


def _plain(value: Any) -> Any:
    """A dataclass in JSON's types."""
    return json.loads(json.dumps(dataclasses.asdict(value)))
