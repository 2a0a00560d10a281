"""The harness's tasks, loaded and ready to be asked: everything is looked at before a model is."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import random
import signal
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilemoe_mlx.errors import Interrupted, Terminated, UserError, did_you_mean
from mobilemoe_mlx.evaluation.code_gate import check_code, function_files
from mobilemoe_mlx.evaluation.local_datasets import LocalDatasets, MissingDataset, fetch_command
from mobilemoe_mlx.evaluation.program_runner import CodeEval
from mobilemoe_mlx.evaluation.suites import WantedTask
from mobilemoe_mlx.evaluation.task_failures import (
    check_function,
    check_imports,
    half_made_task,
    what_failed,
    wrong_question,
)
from mobilemoe_mlx.evaluation.task_index import all_names, task_configs, task_manager

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

# The seeds that the harness begins with: some tasks shuffle their choices, and examples are drawn.
_SEED, _SHOTS_SEED = 0, 1234

# What installs the modules that some tasks import.
_PACKAGES = {
    "math_verify": "lm-eval[math]",
    "antlr4": "lm-eval[math]",
    "langdetect": "lm-eval[ifeval]",
    "immutabledict": "lm-eval[ifeval]",
}


class _MissingPackage(Exception):
    """A package that a task imports is not installed."""

    def __init__(self, task: str, error: ImportError) -> None:
        super().__init__(task)
        self.task, self.said = task, " ".join(str(error).split())
        module = error.name or next((name for name in _PACKAGES if name in self.said), "")
        self.package = _PACKAGES.get(module, module)


@dataclass(frozen=True)
class LoadedTask:
    """One task of the harness and what was asked for it."""

    task: Task
    wanted: WantedTask
    of_questions: int  # that its data set has
    sources: frozenset[Path] = frozenset()  # files of its functions

    @property
    def name(self) -> str:
        """The harness's."""
        return str(self.task.task_name)

    @property
    def questions(self) -> int:
        """How many are asked."""
        most = self.wanted.limit
        return self.of_questions if most is None else min(self.of_questions, most)

    @property
    def shots(self) -> int:
        """Examples before each question."""
        return int(self.task.get_config("num_fewshot") or 0)

    @property
    def shows_what_it_asks(self) -> str | None:
        """The split of the questions, where a question may be an example for itself.

        The harness draws examples from the questions of a task that has no other split, and takes
        the question out of them only where the YAML names that split (`fewshot_split`).
        """
        config, fewshot = self.task.config, getattr(self.task, "fewshot_cfg", None)
        if not self.shots or fewshot is None or fewshot.samples is not None:
            return None
        asked = config.test_split or config.validation_split
        shown = fewshot.split or config.training_split or config.validation_split or asked
        takes_out = fewshot.split is not None and fewshot.split == config.test_split
        return asked if shown == asked and not takes_out else None


@dataclass(frozen=True)
class LoadedTasks:
    """All tasks of an evaluation in the order in which they run."""

    tasks: tuple[LoadedTask, ...]
    groups: dict[str, Group]  # by name, members before what they are members of
    wanted: tuple[WantedTask, ...]

    @property
    def questions(self) -> int:
        """How many are asked in all."""
        return sum(each.questions for each in self.tasks)


def need_harness() -> str:
    """The version of lm-evaluation-harness; raises UserError where it is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Evaluation needs the package lm-eval ({error}): `pip install --editable '.[eval]'` "
            "in the checkout."
        ) from None
    return importlib.metadata.version("lm-eval")


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Without what the harness prints (bars for each task, warnings of its own defaults), and
    without the processes that it would fork for bootstrapping from one that has threads."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        try:
            yield
        finally:
            if before is None:
                del os.environ["DISABLE_MULTIPROC"]
            else:
                os.environ["DISABLE_MULTIPROC"] = before


def seed_harness() -> None:
    """Seed what tasks draw from, as the harness does at its start; here before each task, so that
    none depends on those before it."""
    random.seed(_SEED)
    np.random.seed(_SHOTS_SEED)


def load_tasks(
    wanted: Sequence[WantedTask],
    *,
    include: Sequence[Path] = (),
    data_dir: Path | None = None,
    allow_code_execution: bool = False,
) -> LoadedTasks:
    """Load tasks and groups with their data, all from this machine.

    `include`: folders with tasks in the harness's YAML. `data_dir`: see LocalDatasets. Raises
    UserError for names that are unknown, for code that may not run, for packages and data that are
    not here (all that are missing in one error), and for tasks that cannot be loaded.
    """
    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")  # metrics of the hub are code from there
    manager = task_manager(wanted, include)
    runs_programs = [
        check_code(each.task, task_configs(manager.task_index, each.task), allow_code_execution)
        for each in wanted
    ]
    data = LocalDatasets(data_dir)
    loaded: list[LoadedTask] = []
    groups: dict[str, Group] = {}
    missing: dict[str, str] = {}  # data set -> the task that needs it
    lacking: list[_MissingPackage] = []
    with data.in_place(), _code_eval() if any(runs_programs) else contextlib.nullcontext():
        for each in wanted:
            try:
                tasks, found = _load(manager, each, data)
            except MissingDataset as error:
                missing.setdefault(error.repo, each.task)
                continue
            except _MissingPackage as error:
                lacking.append(error)
                continue
            loaded += tasks
            groups |= found
    if missing or lacking:
        told = [_missing_packages(lacking)] if lacking else []
        told += [_missing(missing)] if missing else []
        raise UserError("\n".join(told))
    _check_once(loaded)
    return LoadedTasks(tuple(loaded), groups, tuple(wanted))


def _load(
    manager: Any, wanted: WantedTask, data: LocalDatasets
) -> tuple[list[LoadedTask], dict[str, Group]]:
    """The tasks of a name, their shots and seeds set, and the groups they are members of."""
    index = manager.task_index
    entries = (index[name] for name in all_names(index, [wanted.task]) if name in index)
    data.next_task(wanted.task, (Path(e.yaml_path).parent for e in entries if e.yaml_path))
    configs = task_configs(index, wanted.task)
    sources = frozenset(path for config in configs for path in function_files(config))
    seed_harness()
    try:
        found = manager.load([wanted.task])
        tasks = []
        for task in found["tasks"].values():
            questions = task.eval_docs
            _prepare(task, questions, wanted.shots)
            tasks.append(LoadedTask(task, wanted, len(questions), sources))
    except (MissingDataset, UserError):
        raise
    except BaseException as error:  # whatever YAML, functions and data make of each other
        if was_told_to_end(error):
            raise
        _explain(wanted.task, error, sources)
        raise UserError(
            f"The task {wanted.task} cannot be loaded: {what_failed(error, sources)}"
        ) from error
    return tasks, found.get("groups", {})


def _prepare(task: Task, questions: Iterable[Any], shots: int | None) -> None:
    """Look at a task that was made, and set its shots and seed."""
    from lm_eval.api.task import ConfigurableTask

    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"The task {task.task_name} asks about pictures or sounds.")
    _check_metrics(task)
    if (scores := task.get_config("process_results")) is not None and not callable(scores):
        raise UserError(f"The task {task.task_name} has process_results that are no function.")
    first = next(iter(questions), None)
    is_yaml_alone = type(task) is ConfigurableTask
    if is_yaml_alone and first is not None and (wrong := wrong_question(task, first)):
        raise UserError(f"The task {task.task_name} cannot be loaded: question 1: {wrong}")
    _set_shots(task, shots)
    task.set_fewshot_seed(_SHOTS_SEED)


def _explain(name: str, error: BaseException, sources: Collection[Path]) -> None:
    """Raise what is to be done about an error of loading, where that is known."""
    check_function(name, error)
    if isinstance(error, ImportError):
        check_imports(name, error, sources)
        if isinstance(error, ModuleNotFoundError) or any(each in str(error) for each in _PACKAGES):
            raise _MissingPackage(name, error) from None
    if (task := half_made_task(error)) is not None:
        _check_metrics(task)
        _check_filters(task)


def was_told_to_end(error: BaseException) -> bool:
    """Whether it is a signal's, and not a function's of a task that ends the program."""
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
        # Ctrl-C and a function's own cannot be told apart where nobody looks for the signal.
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, Interrupted | Terminated)


def _check_metrics(task: Task) -> None:
    """The harness leaves out a metric that it does not know."""
    if task.get_config("process_results") is not None:
        return
    from lm_eval.api.registry import METRIC_REGISTRY

    for name, function in getattr(task, "_metric_fn_list", {}).items():
        if function is None:
            raise UserError(
                f"The task {task.task_name} scores by '{name}'"
                f"{did_you_mean(name, METRIC_REGISTRY)}, which is no metric of the harness, and "
                "none is downloaded."
            )
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    for name, function in getattr(task, "_aggregation_list", {}).items():
        if function is None:
            raise UserError(
                f"The task {task.task_name} gives '{name}' an aggregation that the harness does "
                f"not have. It has {', '.join(sorted(AGGREGATION_REGISTRY))}."
            )


def _check_filters(task: Task) -> None:
    """The harness has a KeyError for what it does not know."""
    from lm_eval.api.registry import FILTER_REGISTRY

    for each in task.get_config("filter_list") or []:
        for key in ("name", "filter"):
            if key not in each:
                raise UserError(f"The task {task.task_name} has a filter without '{key}': {each}.")
        for step in each["filter"]:
            name = step.get("function")
            if isinstance(name, str) and name not in FILTER_REGISTRY:
                raise UserError(
                    f"The task {task.task_name} filters answers by '{name}'"
                    f"{did_you_mean(name, FILTER_REGISTRY)}, which is no filter of the harness."
                )


def _set_shots(task: Task, shots: int | None) -> None:
    """As the harness does: a task that sets 0 itself has no place for examples."""
    own = task.get_config("num_fewshot")
    if shots is not None and own != 0:
        task.set_config("num_fewshot", shots)
    elif own is None:
        task.set_config("num_fewshot", 0)
    wanted = task.get_config("num_fewshot")
    if wanted and hasattr(task, "sampler") and wanted > len(task.sampler.df):
        raise UserError(
            f"The task {task.task_name} has {len(task.sampler.df)} examples to show, and {wanted} "
            "were asked for (--shots)."
        )


def _missing_packages(lacking: Sequence[_MissingPackage]) -> str:
    tasks = "; ".join(f"{each.task} ({each.said})" for each in lacking)
    packages = sorted({f"'{each.package}'" for each in lacking if each.package})
    advice = f" Install them: pip install {' '.join(packages)}" if packages else ""
    return f"Packages are missing that tasks import: {tasks}.{advice}"


def _missing(missing: Mapping[str, str]) -> str:
    one = len(missing) == 1
    for_tasks = ", ".join(f"{repo} (for {task})" for repo, task in missing.items())
    commands = "".join(f"\n  {fetch_command(repo)}" for repo in missing)
    return (
        f"The data set{'' if one else 's'} {for_tasks} {'is' if one else 'are'} not on this "
        "machine, and nothing is downloaded. Fetch, or put a copy into a folder given with "
        "--data-dir (DIR/OWNER/NAME); a gated one wants its licence accepted on "
        f"https://huggingface.co/datasets/ and `hf auth login` first:{commands}"
    )


def _check_once(loaded: Sequence[LoadedTask]) -> None:
    askers: dict[str, list[str]] = {}
    for each in loaded:
        askers.setdefault(each.name, []).append(each.wanted.task)
    for name, asked_by in askers.items():
        if len(asked_by) > 1:
            raise UserError(
                f"The task {name} is asked for more than once (by {', '.join(asked_by)})."
            )


@contextlib.contextmanager
def _code_eval() -> Iterator[None]:
    """Let `evaluate.load("code_eval")`, which downloads code that runs programs, give ours."""
    import evaluate  # slow

    load = evaluate.load

    def load_ours(path: str, *args: Any, **options: Any) -> Any:
        return CodeEval() if path == "code_eval" else load(path, *args, **options)

    evaluate.load = load_ours
    try:
        yield
    finally:
        evaluate.load = load
