"""Results as text: benchmarks beside published scores, other tasks as the harness tells them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mobilemoe_mlx import text_table
from mobilemoe_mlx.accounting.published import published_models
from mobilemoe_mlx.evaluation.results import Results, TaskResult
from mobilemoe_mlx.evaluation.suites import Suite, WantedTask, read_suite

_UNKNOWN = "*"  # after a number of shots that the paper does not tell


def as_text(results: Results) -> str:
    """All that was found, and what is known of how it compares."""
    settings = results.settings
    suite = None if settings.suite is None else read_suite(settings.suite)
    benchmarks = [each for each in settings.tasks if each.benchmark]
    others = [each for each in settings.tasks if not each.benchmark]
    parts = [f"{settings.model}: {results.described}"]
    if not results.finished:
        parts.append("Not finished: --resume goes on.")
    if benchmarks:
        parts.append(_benchmarks(results, benchmarks))
    if others:
        parts.append(_tasks(results, others))
    if suite is not None:
        parts += _means(results, benchmarks, suite)
        parts += [f"Not in it: {each.benchmark}, since {each.why}." for each in suite.missing]
    cut = {name: each.truncated for name, each in results.tasks.items() if each.truncated}
    if cut:
        of = ", ".join(f"{count:,} of {name}" for name, count in cut.items())
        parts.append(f"Texts that lost their beginning, being longer than the model takes: {of}.")
    return "\n\n".join(parts)


def _benchmarks(results: Results, wanted: Sequence[WantedTask]) -> str:
    """In per cent, as the paper has them."""
    known = [
        model
        for model in published_models().values()
        if any(each.benchmark in model.benchmarks for each in wanted)
    ]
    rows = [["", "shots", "questions", "score", "±", *(model.name for model in known)]]
    notes: dict[str, str] = {}
    for each in wanted:
        result = results.result(each.task)
        row = [each.benchmark, "", "", "", ""]
        if result is not None:
            row[1:] = [
                _shots(result) + (_UNKNOWN if each.why else ""),
                _questions(result),
                _per_cent(result.metrics.get(each.metric)),
                _per_cent(result.stderr.get(each.metric)),
            ]
            if each.why:
                notes[each.benchmark] = each.why
        published = (model.benchmarks.get(each.benchmark) for model in known)
        rows.append([*row, *("" if score is None else f"{score:.1f}" for score in published)])
    text = text_table.columns(rows) + "\nIn per cent; ± is the standard error"
    text += "; published scores are of BF16 base models." if known else "."
    if notes:
        by_reason: dict[str, list[str]] = {}
        for benchmark, why in notes.items():
            by_reason.setdefault(why, []).append(benchmark)
        told = "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())
        text += f"\n{_UNKNOWN} Not the paper's, which were not found. {told}."
    return text


def _tasks(results: Results, wanted: Sequence[WantedTask]) -> str:
    """Every metric, as the harness gives it."""
    rows = [["", "shots", "questions", "metric", "value", "±"]]
    for each in wanted:
        for name, result in _with_members(results, each.task):
            head = [name, _shots(result), _questions(result)]
            for metric, value in result.metrics.items():
                error = result.stderr.get(metric)
                rows.append(
                    [
                        *head,
                        metric.removesuffix(",none"),
                        "not finite" if value is None else f"{value:.4f}",
                        "" if error is None else f"{error:.4f}",
                    ]
                )
                head = ["", "", ""]
    return text_table.columns(rows)


def _with_members(results: Results, name: str) -> Iterator[tuple[str, TaskResult]]:
    """The result of a task; of a group and its members; of the tasks of a tag."""
    result = results.result(name)
    if result is None:
        yield from ((task, each) for task, each in results.tasks.items() if each.asked_by == name)
        return
    yield name, result
    for member in result.members:
        yield from _with_members(results, member)


def _means(results: Results, wanted: Sequence[WantedTask], suite: Suite) -> list[str]:
    """That of the suite and the published ones, and what is not known of them."""
    scores = [
        score
        for each in wanted
        if (result := results.result(each.task)) is not None
        and (score := result.metrics.get(each.metric)) is not None
    ]
    parts = []
    if scores and suite.mean is not None:
        of = len(suite.tasks) + len(suite.missing)
        which = f"the {of}" if len(scores) == of else f"{len(scores)} of the {of}"
        limited = any(each.limit is not None for each in wanted)
        first = ", of their first questions alone" if limited else ""
        parts.append(f"Mean of {which}{first}: {100 * sum(scores) / len(scores):.1f}")
        parts.append(f"Published means of the {of}:\n{text_table.columns([*_published(suite)])}")
    return [*parts, suite.metric_note] if suite.metric_note else parts


def _published(suite: Suite) -> Iterator[list[str]]:
    for model in published_models().values():
        if suite.mean == "sft":
            if model.sft_score is not None:
                yield [model.name, f"{model.sft_score:.1f}"]
        else:
            int4 = "" if model.int4_score is None else f"INT4 {model.int4_score:.1f}"
            yield [model.name, f"{model.score:.1f}", int4]


def _shots(result: TaskResult) -> str:
    return "" if result.shots is None else str(result.shots)


def _questions(result: TaskResult) -> str:
    if result.questions == result.of_questions:
        return f"{result.questions:,}"
    return f"{result.questions:,} of {result.of_questions:,}"


def _per_cent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
