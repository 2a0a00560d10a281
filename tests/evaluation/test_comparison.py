"""`mobilemoe eval --compare`: differences of evaluations, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tasks import CHOICES, write_tasks

from mobilemoe_mlx.cli.eval import named_models
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation import comparison_picture
from mobilemoe_mlx.evaluation.comparison import compare
from mobilemoe_mlx.evaluation.comparison_table import as_text
from mobilemoe_mlx.evaluation.paired import holm, mcnemar, paired_interval
from mobilemoe_mlx.evaluation.results import (
    Documents,
    EvaluationFolder,
    Results,
    Settings,
    TaskResult,
    read_results,
)

BASE = [1, 1, 1, 1, 0, 0, 0, 0]
WORSE = [0, 0, 0, 1, 1, 0, 0, 0]
BETTER = {"acc": True, "brier_score": False, "perplexity": False, "f1": True}


def evaluation(values: dict[str, dict[str, list[Any]]], **changes: Any) -> Results:
    """Results of tasks with these values for each question."""
    settings = Settings("m", "0", (), "mlx", {}, None, (), False, "0.4")
    settings = dataclasses.replace(settings, **changes.get("settings", {}))
    results = Results(settings, changes.get("described", ""), finished=True)
    for task, metrics in values.items():
        count = len(next(iter(metrics.values())))
        hashes = tuple(f"{task}{i}" for i in range(count))
        results.documents[task] = Documents(hashes, {m: tuple(v) for m, v in metrics.items()})
        shots = changes.get("shots", 0)
        results.tasks[task] = TaskResult({}, {}, BETTER, count, count, shots, "1")
    return results


def test_differences_question_by_question() -> None:
    values = {"a": {"acc,none": BASE}, "b": {"acc,none": BASE[::-1]}}
    base = evaluation(values, described="a model on MLX")
    values["a"] = {"acc,none": WORSE}
    other = evaluation(values, described="a model on the CPU")
    found = compare({"BF16": base, "INT4": other})
    (model,) = found.models
    first, second = model.differences
    assert (found.base, model.name, first.task, first.metric) == ("BF16", "INT4", "a", "acc")
    assert (first.base, first.other, first.questions) == (0.5, 0.25, 8)
    assert first.test == mcnemar(np.array(BASE), np.array(WORSE))
    assert first.test is not None and (first.test.gained, first.test.lost) == (1, 3)
    assert first.difference == paired_interval(np.array(BASE), np.array(WORSE))
    assert second.difference.mean == 0 and second.test is not None and second.test.p == 1
    assert [each.p_holm for each in model.differences] == pytest.approx(
        [*holm({"a": first.test.p, "b": 1.0}).values()]
    )
    (average,) = model.averages
    assert (average.metric, average.tasks) == ("acc", 2)
    assert average.difference.mean == pytest.approx(-0.125)
    text = as_text(found)
    assert "INT4 against BF16" in text and "-0.2500" in text and "mean of 2 tasks" in text
    assert text.startswith("BF16: a model on MLX\nINT4: a model on the CPU\n")


def test_metrics_that_are_no_numbers() -> None:
    values = {
        "brier_score,none": [[1, [0.25, 0.75]], [0, [0.5, 0.5]]],
        "perplexity,none": [-1.0, -3.0],
        "f1,none": [[0, 1], [1, 1]],
        "acc,none": [1, None],
    }
    found = compare({"x": evaluation({"t": values}), "y": evaluation({"t": values})})
    brier, likelihood = found.models[0].differences
    assert brier.base == pytest.approx((2 * 0.25**2 + 2 * 0.5**2) / 2)
    assert not brier.higher_is_better and brier.test is None
    assert (likelihood.metric, likelihood.base) == ("log-likelihood", -2.0)
    assert likelihood.higher_is_better and likelihood.p_holm is None
    assert found.left_out == ("t: f1", "t: acc")


@pytest.mark.parametrize("value", [[], [2, [0.5, 0.5]], [0, ["a", "b"]], 3, [1, 2]])
def test_values_that_were_edited_are_left_out(value: Any) -> None:
    edited = evaluation({"a": {"acc,none": [1], "brier_score,none": [value]}})
    assert compare({"one": edited, "two": edited}).left_out == ("a: brier_score",)


def test_the_axis_of_answers_that_are_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_picture, "png_bytes", lambda figure: figure)
    same = evaluation({"t": {"acc,none": BASE}})
    (panel,) = comparison_picture.picture(compare({"a": same, "b": same})).axes  # type: ignore[attr-defined]
    low, high = panel.get_xlim()
    assert low < -1e-3 and high > 1e-3


def test_what_cannot_be_compared() -> None:
    base = evaluation({"t": {"acc,none": BASE}})
    with pytest.raises(UserError, match="two models or evaluations at least"):
        compare({"a": base})
    with pytest.raises(UserError, match="no task in common"):
        compare({"a": base, "b": evaluation({"other": {"acc,none": BASE}})})
    with pytest.raises(UserError, match="not asked the same questions of t"):
        compare({"a": base, "b": evaluation({"t": {"acc,none": BASE[:4]}})})
    with pytest.raises(UserError, match="with 0 examples of a and with 5 of b"):
        compare({"a": base, "b": evaluation({"t": {"acc,none": BASE}}, shots=5)})
    with pytest.raises(UserError, match="b was asked through its chat template and a was not"):
        compare({"a": base, "b": evaluation({"t": {"acc,none": BASE}}, settings={"chat": True})})


def test_names() -> None:
    assert named_models(["runs/qat/model", "BF16=runs/sft/model", "org/M-S", "e/"]) == {
        "qat": "runs/qat/model",
        "BF16": "runs/sft/model",
        "M-S": "org/M-S",
        "e": "e/",
    }
    with pytest.raises(UserError, match="would both be called qat"):
        named_models(["a/qat/model", "b/qat/model"])
    for word in ("=x", "x="):
        with pytest.raises(UserError, match="NAME=MODEL"):
            named_models([word])


@pytest.mark.usefixtures("datasets_cache")
def test_command(
    bf16_folder: Path, int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models and a folder of an earlier evaluation, beside each other."""
    pytest.importorskip("lm_eval")
    tasks = write_tasks(tmp_path / "tasks", 6)
    options = ["--include", str(tasks), "--tasks", CHOICES, "--engine", "mlx"]
    out, image, figures = tmp_path / "out", tmp_path / "image.png", tmp_path / "figures.json"
    models = [f"BF16={bf16_folder}", f"INT4={int4_folder}"]
    words = ["eval", "--compare", *models, *options, "--out", str(out)]
    assert main([*words, "--picture", str(image), "--json", str(figures)]) == 0
    said = capsys.readouterr().out
    assert "INT4 against BF16" in said and "McNemar" in said
    assert image.read_bytes().startswith(b"\x89PNG")
    record = json.loads(figures.read_text())
    scores = {name: read_results(out / name).documents[CHOICES] for name in ("BF16", "INT4")}
    for each in record["models"][0]["differences"]:
        values = [np.mean(s.values[f"{each['metric']},none"]) for s in scores.values()]
        assert (each["base"], each["other"]) == pytest.approx(values)
    # Again: nothing is computed anew, and results are as good as models.
    answers = (out / "BF16" / "answers.jsonl").read_bytes()
    assert main(["eval", "--compare", str(out / "BF16"), str(out / "INT4")]) == 0
    again = capsys.readouterr().out
    assert again.strip() in said
    assert main(words) == 0
    assert (out / "BF16" / "answers.jsonl").read_bytes() == answers
    assert read_results(out / "BF16").finished


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, values in (("a", [1, 0]), ("b", [1, 0, 0])):
        EvaluationFolder(tmp_path / name).write(evaluation({"t": {"acc,none": values}}))
    unfinished = evaluation({"t": {"acc,none": [1, 0]}})
    unfinished.finished = False
    EvaluationFolder(tmp_path / "c").write(unfinished)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    cases = [
        (["--compare", a, b], "not asked the same questions of t"),
        # Both before a model is looked at, which would take long to evaluate.
        (["--compare", "nowhere"], "two models or evaluations at least"),
        (["--compare", "nowhere", str(tmp_path / "c")], "an evaluation that is not finished"),
        (["--compare", a, b, "--adapter", "x"], "evaluate the model with its adapter first"),
        ([a, "--compare", b], "Name one model to evaluate, or several with --compare"),
        ([], "Name one model to evaluate"),
        ([a, "--picture", str(tmp_path / "x.png")], "--picture draws a comparison"),
        (["--compare", a, b, "--picture", "nowhere/x.png"], "not a file in a folder that exists"),
    ]
    for words, message in cases:
        assert main(["eval", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
