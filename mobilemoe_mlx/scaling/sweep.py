"""A sweep: every point of a grid trained by our own trainer, one row of results each.

FOLDER/sweep.json        what must be the same in every run of the sweep
FOLDER/corpus, tokenizer where the recipe names none: made once, as `mobilemoe train` makes them
FOLDER/points/NAME/      a point that is being trained: the folder of a training run
FOLDER/metrics/NAME.jsonl its metrics, when it is finished
FOLDER/rows/NAME.json    its row, which says that it is finished
FOLDER/results.jsonl     all rows, for `scale fit`
FOLDER/locks/            a file a point, locked by the process that trains it

A lock ends with its process, however that ends; what a killed process had saved of its point, the
next one goes on from. On a file system without locks only one process may train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.file_lock import take_lock
from mobilemoe_mlx.scaling.sweep_grid import Plan, Point
from mobilemoe_mlx.tokenizer import load_tokenizer
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.train.run_folder import RunFolder, changed_values
from mobilemoe_mlx.train.start import find_tokenizer, model_args
from mobilemoe_mlx.train.summary import duration
from mobilemoe_mlx.train.tiny_data import with_tiny_data

_VERSION = 1
_LAST = 0.1  # share of the steps over which training loss and load are averaged


@dataclass(frozen=True)
class SweepFolder:
    """What lies where."""

    path: Path

    @property
    def record(self) -> Path:
        """The recipe without what the points change."""
        return self.path / "sweep.json"

    @property
    def results(self) -> Path:
        """All rows."""
        return self.path / "results.jsonl"

    def row(self, point: Point) -> Path:
        """The row of a finished point."""
        return self.path / "rows" / f"{point.name}.json"

    def metrics(self, point: Point) -> Path:
        """The metrics of a finished point."""
        return self.path / "metrics" / f"{point.name}.jsonl"

    def run(self, point: Point) -> RunFolder:
        """The training run of a point that is not finished."""
        return RunFolder(self.path / "points" / point.name)

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold the lock `name`; False where another process does and it is not waited for."""
        path = self.path / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            yield take_lock(file.fileno(), wait=wait)


def sweep(plan: Plan, run: Path | str, *, say: Callable[[str], None] = print) -> Path:
    """Train the points of `plan` that the folder `run` has no row of; returns its results file.

    Any number of processes may call this on one folder. Raises UserError before anything is trained
    where the folder holds another sweep or the data cannot be read, and after the other points
    where some could not be trained; Stopped on a signal, with everything saved.
    """
    folder = SweepFolder(files.output_folder(run))
    _check_free(folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.locked("sweep", wait=True):
        plan = _prepared(plan, folder, say)
    failures: dict[Point, str] = {}
    progress = _Progress(plan, folder, say)
    while True:
        elsewhere = trained = 0
        for point in plan.points:
            if point in failures or _is_finished(folder, point):
                continue
            with folder.locked(point.name, wait=False) as mine:
                if not mine:
                    elsewhere += 1
                elif not folder.row(point).is_file():
                    try:
                        _train(plan, point, folder, progress)
                    except UserError as error:
                        failures[point] = str(error)
                        say(f"{point} could not be trained: {error}")
                    trained += 1
        if not (elsewhere and trained):  # what others held may have been left by now
            break
    if failures:
        point, why = next(iter(failures.items()))
        raise UserError(
            f"{len(failures)} of the {len(plan.points)} points could not be trained; the others' "
            f"rows are in {folder.results}. The first: {point}: {why}"
        )
    if elsewhere:
        say(f"{elsewhere} points are being trained by other processes.")
    return folder.results


def _check_free(folder: SweepFolder) -> None:
    """Raise UserError for a folder that holds something else."""
    path = folder.path
    begun = folder.record.is_file() or (path / "locks").is_dir()
    if path.is_dir() and not begun and any(files.visible(path.iterdir())):
        raise UserError(f"{path} exists and is not a sweep: choose another folder with --run.")


def _prepared(plan: Plan, folder: SweepFolder, say: Callable[[str], None]) -> Plan:
    """The plan with its data in place; records what the sweep is.

    Raises UserError where the folder holds a sweep of another recipe.
    """
    home = RunFolder(folder.path)
    recipe = with_tiny_data(plan.recipe, home, None, say, make=True)
    tokenizer_folder = find_tokenizer(recipe, home, None)
    model_args(recipe, load_tokenizer(tokenizer_folder), home, None)  # vocabulary and context
    recipe = dataclasses.replace(recipe, tokenizer=str(files.resolved(tokenizer_folder)))
    stage = dataclasses.asdict(recipe.stages[plan.stage])
    for length in ("tokens", "epochs"):
        del stage[length]
    record = {
        "version": _VERSION,
        "stage": plan.stage,
        "model": recipe.model.to_dict(),
        "tokenizer": {"sha256": files.sha256(tokenizer_folder / "tokenizer.json")},
        "training": stage,
    }
    if folder.record.is_file():
        saved = files.read_json(folder.record)
        if changed := changed_values(saved if isinstance(saved, dict) else {}, record):
            raise UserError(
                f"{folder.path} holds a sweep of another recipe ({', '.join(changed)}): choose "
                "another folder with --run."
            )
    else:
        files.write_json(folder.record, record)
    return dataclasses.replace(plan, recipe=recipe)


def _is_finished(folder: SweepFolder, point: Point) -> bool:
    """Whether there is a row; what is left of the training then goes."""
    if not folder.row(point).is_file():
        return False
    shutil.rmtree(folder.run(point).path, ignore_errors=True)
    return True


def _train(plan: Plan, point: Point, folder: SweepFolder, progress: _Progress) -> None:
    """Train a point to its end, from where it stands, and write its row."""
    run = folder.run(point)
    began = time.monotonic()
    begun = run.record_file.is_file()
    train(plan.recipe_of(point), run.path, resume=begun, seed=point.seed, say=_say_nothing)
    row = _row(plan, point, read_metrics(run.stage(plan.stage).metrics))
    folder.metrics(point).parent.mkdir(exist_ok=True)
    files.copy(run.stage(plan.stage).metrics, folder.metrics(point))
    folder.row(point).parent.mkdir(exist_ok=True)
    files.write_json(folder.row(point), row)
    shutil.rmtree(run.path)
    with folder.locked("sweep", wait=True):
        _write_results(folder)
    progress.finished(point, row, time.monotonic() - began)


def _row(plan: Plan, point: Point, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """A point's row: the fields of `results.Row`, and what else is worth keeping."""
    shape, costs = point.shape, plan.costs(point)
    steps = [record for record in metrics if "loss" in record]
    last = steps[-math.ceil(_LAST * len(steps)) :]
    stage = plan.recipe_of(point).stages[plan.stage]
    row: dict[str, Any] = {
        "active": costs.active_parameters,
        "tokens": stage.steps * stage.batch_size * stage.data.context,
        "experts": shape.E / shape.k,
        "loss": [record["heldout_loss"] for record in metrics if "heldout_loss" in record][-1],
        "granularity": shape.g,
        "shared": shape.shared,
        "seed": point.seed,
        "E": shape.E,
        "k": shape.k,
        "hidden_size": shape.hidden_size,
        "layers": shape.layers,
        "total": costs.total_parameters,
        "int4_bytes": costs.int4_bytes,
        "flops_per_token": costs.flops_per_token,
        "training_loss": statistics.fmean(record["loss"] for record in last),
        "seconds": sum(each["tokens"] / each["tokens_per_second"] for each in steps),
    }
    if not shape.is_dense:
        row |= {
            "load_entropy": statistics.fmean(x for each in last for x in each["load_entropy"]),
            "max_load": statistics.fmean(x for each in last for x in each["max_load"]),
            "dead_experts": statistics.fmean(sum(each["dead_experts"]) for each in last),
        }
        if stage.routing.capacity_factor is not None:
            row["dropped"] = statistics.fmean(x for each in last for x in each["dropped"])
    return {name: _rounded(value) for name, value in row.items()}


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def _write_results(folder: SweepFolder) -> None:
    rows = [files.read_json(path) for path in sorted((folder.path / "rows").glob("*.json"))]
    files.write(folder.results, "".join(json.dumps(row) + "\n" for row in rows).encode())


class _Progress:
    """Says what was reached and how long the rest will take."""

    def __init__(self, plan: Plan, folder: SweepFolder, say: Callable[[str], None]) -> None:
        self._plan, self._folder, self._say = plan, folder, say
        self._done = self._seconds = 0.0  # training FLOPs of this process, and their time
        left = self._left()
        total = len(plan.points)
        say(
            f"{total} points, {total - len(left)} of them finished, "
            f"{sum(map(plan.flops, left)):.2g} training FLOPs to go."
        )

    def _left(self) -> list[Point]:
        return [each for each in self._plan.points if not self._folder.row(each).is_file()]

    def finished(self, point: Point, row: dict[str, Any], seconds: float) -> None:
        """Tell of a point that took this process `seconds`."""
        self._done += self._plan.flops(point)
        self._seconds += seconds
        left = self._left()
        rest = sum(map(self._plan.flops, left)) / self._done * self._seconds
        total = len(self._plan.points)
        self._say(
            f"[{total - len(left)}/{total}] {point}: loss {row['loss']:.4f} in {duration(seconds)}"
            + (f"; about {duration(rest)} for the rest in this process alone" if left else "")
        )


def _say_nothing(_: str) -> None:
    """A point's training says nothing of its own."""
