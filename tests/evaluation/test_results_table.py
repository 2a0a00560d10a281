"""Results beside the published scores, and what is told of what is not known."""

from __future__ import annotations

import dataclasses

from mobilemoe_mlx.accounting.published import published_models
from mobilemoe_mlx.evaluation.results import Results, Settings, TaskResult
from mobilemoe_mlx.evaluation.results_table import as_text
from mobilemoe_mlx.evaluation.suites import WantedTask, read_suite


def results_of(suite: str | None, tasks: tuple[WantedTask, ...]) -> Results:
    settings = Settings(
        model="S", model_sha256="", adapters=(), engine="cpu", options={}, suite=suite,
        tasks=tasks, chat=False, harness="0.4.13",
    )  # fmt: skip
    found = {
        each.task: TaskResult(
            metrics={each.metric or "acc,none": 0.25},
            stderr={each.metric or "acc,none": 0.0125},
            higher_is_better={},
            questions=10,
            of_questions=10 if each.limit is None else 20,
            shots=each.shots,
            version="1",
        )
        for each in tasks
    }
    return Results(settings, "a model", found, finished=True)


def line_of(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return line.split()


def test_a_suite_beside_what_is_published() -> None:
    text = as_text(results_of("paper14", read_suite("paper14").tasks))
    # S's score of HellaSwag, and the means, are the paper's.
    assert line_of(text, "HellaSwag") == ["HellaSwag", "0", "10", "25.0", "1.2", "58.9"]
    assert line_of(text, "MMLU") == ["MMLU", "5*", "10", "25.0", "1.2"]
    assert "MMLU: as its authors evaluate it" in text
    assert "Mean of the 14: 25.0" in text
    assert line_of(text, "MobileMoE-S") == ["MobileMoE-S", "46.5", "INT4", "44.0"]
    assert line_of(text, "Gemma-3-270M") == ["Gemma-3-270M", "33.5"]


def test_what_is_missing_or_cut_is_told() -> None:
    suite = read_suite("sft")
    results = results_of("sft", suite.tasks)
    del results.tasks["ifeval"]
    results.tasks["mmlu_pro"] = dataclasses.replace(results.tasks["mmlu_pro"], truncated=1234)
    results.finished = False
    text = as_text(results)
    assert "Mean of 5 of the 7: 25.0" in text and "Not finished" in text
    assert "Not in it: IFBench, since lm-evaluation-harness 0.4.13 has no such task." in text
    assert "1,234 of mmlu_pro" in text
    assert line_of(text, "MobileMoE-L") == ["MobileMoE-L", "44.4"]
    limited = tuple(dataclasses.replace(each, limit=10) for each in suite.tasks)
    text = as_text(results_of("sft", limited))
    assert "first questions alone" in text and "10 of 20" in text


def test_tasks_by_name_are_told_as_the_harness_does() -> None:
    text = as_text(results_of(None, (WantedTask("wikitext", shots=2),)))
    assert line_of(text, "wikitext") == ["wikitext", "2", "10", "acc", "0.2500", "0.0125"]
    assert "Published" not in text


def test_published_benchmarks_are_those_of_the_suite() -> None:
    names = {each.benchmark for each in read_suite("paper14").tasks}
    for model in published_models().values():
        assert set(model.benchmarks) <= names
