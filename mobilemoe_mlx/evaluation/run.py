"""A whole evaluation: the tasks of a suite on one model, in a folder that it can go on from."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilemoe_mlx import files
from mobilemoe_mlx.checkpoint import hub
from mobilemoe_mlx.engines import default_engine, model_args
from mobilemoe_mlx.errors import DamagedModel, UserError
from mobilemoe_mlx.evaluation.answer_log import AnswerLog
from mobilemoe_mlx.evaluation.harness_results import (
    add_groups,
    documents_of,
    doubts_of,
    task_result,
)
from mobilemoe_mlx.evaluation.open_scorer import open_scorer
from mobilemoe_mlx.evaluation.question_bar import QuestionBar
from mobilemoe_mlx.evaluation.results import (
    Adapter,
    EvaluationFolder,
    Results,
    Settings,
)
from mobilemoe_mlx.evaluation.suites import wanted_tasks
from mobilemoe_mlx.evaluation.task_failures import failed_function, what_failed
from mobilemoe_mlx.evaluation.tasks import (
    LoadedTask,
    LoadedTasks,
    load_tasks,
    need_harness,
    quiet_harness,
    seed_harness,
    was_told_to_end,
)

if TYPE_CHECKING:
    from mobilemoe_mlx.evaluation.harness_model import HarnessModel

# Draws for the standard error of a metric that is no mean; a mean's is computed.
BOOTSTRAP = 1000

# Options of the CPU engine that change no bit of what it computes (docs/engines.md).
_FREE = ("threads", "expert_memory")

# The files of a model or adapter that decide what it answers.
_DECISIVE = (".safetensors", ".json", ".jinja", ".model", ".onnx", ".data")


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation takes besides the model, the tasks and the folder."""

    shots: int | None = None  # examples before each question; None: the suite's or the harness's
    limit: int | None = None  # questions of each task at most, the first ones
    chat: bool | None = None  # ask through the chat template; None: as the suite says
    include: tuple[Path, ...] = ()  # folders with tasks in the harness's YAML
    data_dir: Path | None = None  # folder with data sets
    allow_code_execution: bool = False
    log_samples: bool = False
    resume: bool = False


def evaluate(
    model: str | Path,
    tasks: Sequence[str] = (),
    *,
    suite: str | None = None,
    folder: Path | str,
    options: EvaluationOptions = EvaluationOptions(),
    engine: str | None = None,
    adapters: Sequence[tuple[Path, float]] = (),
    say: Callable[[str], None] = print,
    **engine_options: Any,
) -> Results:
    """Ask `model` the questions of `tasks` or `suite`; returns what is then in `folder`.

    `engine`, `adapters`, `engine_options`: as `engines.open_engine` takes them. Names, code, data
    and the folder are looked at before the model is loaded. What a task found is written when it is
    done, and each batch of answers at once: killed at any time, the same call with `resume` goes on
    and finds the same, bit for bit. Raises UserError, one sentence, for what cannot be used.
    """
    out = EvaluationFolder(files.output_folder(folder))
    chosen = wanted_tasks(suite, tasks, options.shots, options.limit)
    out.check_free(options.resume)
    harness = need_harness()
    base = hub.resolve(model)
    args = model_args(base)
    given = {name: value for name, value in engine_options.items() if value is not None}
    engine = engine or default_engine(base, with_adapters=bool(adapters))
    settings = Settings(
        model=str(model),
        model_sha256=_digest(base),
        adapters=tuple(
            Adapter(str(path), _digest(files.user_path(path)), weight) for path, weight in adapters
        ),
        engine=engine,
        options={k: v for k, v in given.items() if engine != "cpu" or k not in _FREE},
        suite=suite,
        tasks=chosen.tasks,
        chat=chosen.chat if options.chat is None else options.chat,
        harness=harness,
    )
    before = out.begun(settings)
    with quiet_harness():
        loaded = load_tasks(
            chosen.tasks,
            include=options.include,
            data_dir=options.data_dir,
            allow_code_execution=options.allow_code_execution,
        )
    _check_lengths(loaded, args.max_position_embeddings)
    scorer = open_scorer(base, engine, adapters=[*adapters] or None, **given)
    if settings.chat and not scorer.tokenizer.has_chat_template:
        raise UserError(
            f"{model} has no chat template, so questions cannot be asked as chats: "
            + ("leave out --chat." if options.chat else "add --no-chat.")
        )
    names = [each.name for each in loaded.tasks]
    what = names[0] if len(names) == 1 else f"{len(names)} tasks"
    say(f"{loaded.questions:,} questions of {what} to {scorer.describe()}")
    for each in loaded.tasks:
        if (split := each.shows_what_it_asks) is not None:
            say(
                f"{each.name}: the {each.shots} examples before a question are drawn from the "
                f"questions themselves ('{split}'), as the harness does where a task has no other "
                "split; one of them may be the question, with its answer."
            )
    results = Results(settings, scorer.describe())
    if before is not None:  # what was found stays until it is found again
        asked = {each.name for each in loaded.tasks}
        results.tasks = {name: each for name, each in before.tasks.items() if name in asked}
        results.documents = {name: each for name, each in before.documents.items() if name in asked}
        results.groups = {
            name: each for name, each in before.groups.items() if name in loaded.groups
        }
    try:
        out.path.mkdir(parents=True, exist_ok=True)
        with AnswerLog(out.answers, _identity(settings)) as log:
            if before is None:
                out.write(results)
            doubts = _ask(loaded, scorer, log, out, results, options.log_samples)
    except OSError as error:  # a full disk, mostly
        raise UserError(
            f"{error.filename or out.path}: {error.strerror or error}. What was answered before is "
            "kept: go on with --resume."
        ) from error
    for doubt in doubts:
        say(doubt)
    return results


def _ask(
    loaded: LoadedTasks,
    scorer: Any,
    log: AnswerLog,
    out: EvaluationFolder,
    results: Results,
    log_samples: bool,
) -> list[str]:
    """Run each task and write what it found; returns what looks wrong with their questions."""
    from mobilemoe_mlx.evaluation.harness_model import HarnessModel

    doubts = []
    found: dict[str, Mapping[str, Any]] = {}  # the harness's own form, for groups
    with QuestionBar(loaded.questions) as bar:
        model = HarnessModel(scorer, log, bar.report)
        for each in loaded.tasks:
            bar.begin(each)
            seconds, truncated = log.seconds, model.truncated
            with _named(each, out):
                whole = _run(each, model, results.settings.chat)
                samples = whole["samples"][each.name]
                found[each.name] = whole["results"][each.name]
                results.tasks[each.name] = task_result(
                    each, whole, log.seconds - seconds, model.truncated - truncated
                )
                results.documents[each.name] = documents_of(samples)
                doubts += [f"{each.name}: {doubt}" for doubt in doubts_of(each.task, samples)]
            if log_samples:
                out.write_samples(each.name, samples)
            with quiet_harness():
                add_groups(each.name, loaded, found, results)
            out.write(results)
            bar.end()
    results.finished = True
    out.write(results)
    return doubts


def _run(each: LoadedTask, model: HarnessModel, chat: bool) -> Mapping[str, Any]:
    """The harness's results of one task."""
    from lm_eval.evaluator import evaluate as harness_evaluate

    with quiet_harness():
        seed_harness()
        return harness_evaluate(
            model,
            {"tasks": {each.name: each.task}, "groups": {}},
            # Not the number that was asked for, which may be larger than the harness takes.
            limit=None if each.wanted.limit is None else each.questions,
            bootstrap_iters=BOOTSTRAP,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=True,  # it was asked for before the tasks were loaded
        )


@contextlib.contextmanager
def _named(each: LoadedTask, out: EvaluationFolder) -> Iterator[None]:
    """Let what a task fails by name the task, and say what is kept."""
    try:
        yield
    except BaseException as error:  # whatever functions make of data and answers
        is_of_the_task = not isinstance(error, OSError | MemoryError) or failed_function(
            error, each.sources
        )
        if was_told_to_end(error) or isinstance(error, DamagedModel) or not is_of_the_task:
            raise
        what = str(error) if isinstance(error, UserError) else what_failed(error, each.sources)
        raise UserError(
            f"The task {each.name} failed: {what.rstrip('.')}. What was found before is in "
            f"{out.path}: leave this task out, or mend it and go on with --resume."
        ) from error


def _check_lengths(loaded: LoadedTasks, context: int) -> None:
    """Raise UserError where a task's answers do not fit into the model's context."""
    from mobilemoe_mlx.evaluation.harness_model import MAX_GEN_TOKS

    for each in loaded.tasks:
        if each.task.OUTPUT_TYPE != "generate_until":
            continue
        given = each.task.get_config("generation_kwargs") or {}
        length = given.get("max_gen_toks", MAX_GEN_TOKS)
        if isinstance(length, int) and length >= context:
            raise UserError(
                f"The task {each.name} wants answers of {length} tokens, and this model takes "
                f"{context} with the prompt: leave it out."
            )


def _identity(settings: Settings) -> str:
    """A digest of all that decides an answer besides the request."""
    decisive = [
        settings.model_sha256,
        [(each.sha256, each.weight) for each in settings.adapters],
        settings.engine,
        settings.options,
        [(name, metadata.version(name)) for name in ("mobilemoe-mlx", "mlx", "numpy")],
    ]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _digest(folder: Path) -> str:
    """SHA-256 over the files that decide what the model or adapter in `folder` answers."""
    digest = hashlib.sha256()
    for path in files.walk(folder):
        if path.suffix in _DECISIVE:
            digest.update(f"{path.relative_to(folder)} {files.sha256(path)}\n".encode())
    return digest.hexdigest()
