"""What a task of the harness fails by, for the person who wrote it: where, at which question, why.

The harness says little of it; the traceback and the harness's own variables in it say the rest.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from mobilemoe_mlx.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lm_eval.api.task import Task


class _Step(NamedTuple):
    """A frame of a traceback, and the line where it is."""

    frame: FrameType
    line: int

    @property
    def file(self) -> Path:
        return Path(os.path.realpath(self.frame.f_code.co_filename))

    @property
    def function(self) -> str:
        return self.frame.f_code.co_name


def what_failed(error: BaseException, sources: Collection[Path] = ()) -> str:
    """An error of a task's YAML, functions or data on one line.

    `sources`: the files of the task's own functions, of which the one that failed is named.
    """
    where, source = _failed(error, sources)
    at = question_of(error)
    of = "" if at is None else f"question {at.number}: "
    if at is not None and not where:
        if not isinstance(at.scores, Mapping):
            return f"{of}process_results gives {at.scores!r:.100}, which names no metric."
        if said := wrong_question(at.task, at.document):
            return of + said
    return of + where + _told(source)


def failed_function(error: BaseException, sources: Collection[Path]) -> str | None:
    """The function of a task that an error comes from, its file and line; None: from none."""
    return _failed(error, sources)[0].removesuffix(": ") or None


def _failed(error: BaseException, sources: Collection[Path]) -> tuple[str, BaseException]:
    """Function, file and line as a beginning of a sentence, and the error as it was there."""
    for each in _with_causes(error):
        own = [step for step in _steps(each) if step.file in sources]
        # What ends a program leaves no other trace where a function is of an installed package.
        if not own and not isinstance(each, Exception):
            own = _steps(each)[-1:]
        if own:
            name = own[0].function
            what = "the import" if name == "<module>" else name
            return f"{what} ({own[-1].file}, line {own[-1].line}): ", each
    return "", error


def _told(error: BaseException) -> str:
    if isinstance(error, StopIteration):  # what `datasets` and the harness make of no rows
        return "its data set, or the split that it asks or shows, has no rows."
    said = " ".join(str(error).split())[:500]
    told = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if isinstance(error, SystemExit):
        told = f"it ends the program ({told})"
    cause = error.__cause__
    return told if cause is None else f"{told.rstrip('.')}, from {_told(cause)}"


class _Question(NamedTuple):
    task: Task
    document: Mapping[str, Any]
    number: int  # from 1
    scores: Any  # what process_results gave last


def question_of(error: BaseException) -> _Question | None:
    """The question that the harness was at, where it was at one."""
    steps = _steps(error)
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        found = step.frame.f_locals
        task = found.get("self", found.get("task"))
        if not hasattr(task, "doc_to_target"):
            continue
        if "test_doc" in found:  # a task looks at its first question when it is made
            return _Question(task, found["test_doc"], 1, {})
        # What scores the whole comes when all questions are done.
        is_done = after is not None and after.function == "_process_results"
        if isinstance(found.get("doc_id"), int) and "doc" in found and not is_done:
            return _Question(task, found["doc"], found["doc_id"] + 1, found.get("metrics", {}))
    return None


def half_made_task(error: BaseException) -> Task | None:
    """The task that the harness was about to make from its YAML."""
    for step in _steps(error):
        task = step.frame.f_locals.get("self")
        if step.function == "__init__" and hasattr(task, "_metric_fn_list"):
            return task  # type: ignore[no-any-return]
    return None


def wrong_question(task: Task, document: Mapping[str, Any]) -> str | None:
    """What the harness cannot take of a question; None where it can, or where that is not told."""
    try:
        return next(_wrong_parts(task, document), None)
    except Exception:  # of a function of the task: that is the error then, and not its values
        return None


def _wrong_parts(task: Task, document: Mapping[str, Any]) -> Iterator[str]:
    text, target = task.doc_to_text(document), task.doc_to_target(document)
    choices: Any = None
    if task.get_config("doc_to_choice") is not None:
        choices = task.doc_to_choice(document)
        if not isinstance(choices, list):
            yield f"doc_to_choice gives {choices!r:.100}, which is no list."
        elif not choices:
            yield "it has no choices (doc_to_choice)."
        for number, choice in enumerate(choices, 1):
            if not isinstance(choice, str):
                yield f"its choice {number} is {choice!r:.100}, which is no text (doc_to_choice)."
            elif not choice:
                yield f"its choice {number} is empty (doc_to_choice): give it a text."
    elif task.OUTPUT_TYPE == "multiple_choice":
        yield "a task of several choices has no doc_to_choice."
    if not isinstance(text, str) and not (choices and isinstance(text, int)):
        yield f"doc_to_text gives {text!r:.100}, which is no text."
    if choices is None:
        if task.OUTPUT_TYPE != "generate_until" and not isinstance(target, str):
            yield f"doc_to_target gives {target!r:.100}, which is no text."
        return
    if task.get_config("process_results") is not None:  # which alone knows what targets are
        return
    for each in target if isinstance(target, list) else [target]:
        if not isinstance(each, int | str):
            yield f"doc_to_target gives {each!r:.100}, which names none of its choices."
    # Others that are out of range count as wrong.
    if isinstance(target, int) and not -len(choices) <= target < len(choices):
        yield f"doc_to_target gives {target}, and there are {len(choices)} choices, counted from 0."


def check_function(name: str, error: BaseException) -> None:
    """Raise UserError where `error` is that a `!function` of the task `name` is not there."""
    for step in _steps(error):
        found = step.frame.f_locals
        if step.function == "_import_func_in_yml" and {"rel", "mod_path", "fn_name"} <= {*found}:
            break
    else:
        return
    file, module, function = Path(found["rel"]), str(found["mod_path"]), str(found["fn_name"])
    wants = f"The task {name} wants the function {function} of {file}"
    cause = error.__cause__
    absent = cause.name if isinstance(cause, ModuleNotFoundError) and not file.exists() else None
    if absent and f"{module}.".startswith(f"{absent}."):
        near = did_you_mean(module, [path.stem for path in file.parent.glob("*.py")])
        raise UserError(
            f"{wants}{near}, and there is no such file; nor is a package {module} installed."
        ) from error
    if isinstance(cause, AttributeError) and len(_steps(cause)) == 1:  # by no line of the module
        has = vars(found["module"])
        near = did_you_mean(function, (each for each in has if callable(has[each])))
        where = file if file.exists() else f"the package {module}"
        raise UserError(
            f"The task {name} wants the function {function} of {where}, which has no such "
            f"function{near}."
        ) from error


def check_imports(name: str, error: ImportError, sources: Collection[Path]) -> None:
    """Raise UserError where a function's file imports one that is beside it: the harness does not
    look there. Nor is an import a missing package that finds a module, but not what it has."""
    where = failed_function(error, sources)
    if not isinstance(error, ModuleNotFoundError) or where is None or error.name is None:
        return
    for file in sources:
        beside = file.parent / f"{error.name.partition('.')[0]}.py"
        if beside.is_file():
            raise UserError(
                f"The task {name} cannot be loaded: {where} imports {error.name}. The harness does "
                f"not look beside the file: set PYTHONPATH={beside.parent}, or put what it takes "
                f"of {beside.name} into {file.name}."
            ) from error


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    while True:
        yield error
        if error.__cause__ is None:
            return
        error = error.__cause__


def _steps(error: BaseException) -> list[_Step]:
    found = []
    trace = error.__traceback__
    while trace is not None:
        found.append(_Step(trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found
