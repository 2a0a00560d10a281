"""Fits find known coefficients again, through noise, and say what they cannot know."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_losses

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.scaling.fit import COEFFICIENTS, Fit, _problem, compare_forms, fit
from mobilemoe_mlx.scaling.fit_doubts import doubts, mixed_families
from mobilemoe_mlx.scaling.law import PAPER, read_law
from mobilemoe_mlx.scaling.results import Row, of_family, read_rows

NOISE = 0.002


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit(synthetic_losses.rows(NOISE), bootstrap=100)


def test_known_coefficients_lie_within_the_intervals(fitted: Fit) -> None:
    for name in COEFFICIENTS:
        low, high = fitted.intervals[name]
        assert low <= getattr(PAPER, name) <= high, name
        assert low <= getattr(fitted.law, name) <= high, name


def test_the_error_is_the_noise(fitted: Fit) -> None:
    assert fitted.law.rmse == pytest.approx(NOISE, rel=0.25)
    assert fitted.held_out_rmse == pytest.approx(NOISE, rel=0.5)
    assert (fitted.rows, fitted.held_out_rows) == (90, 18)
    assert np.std(fitted.residuals) == pytest.approx(fitted.law.rmse, rel=0.05)


def test_without_noise_the_law_is_found_exactly() -> None:
    """As far as Huber's loss, which is flat at its minimum, can tell: losses to 1e-4."""
    given = synthetic_losses.rows(0)
    law = fit(given, bootstrap=0).law
    for row in given:
        assert law.loss(row.active, row.tokens, row.experts) == pytest.approx(row.loss, abs=1e-4)


def test_an_outlier_moves_little() -> None:
    given = synthetic_losses.rows(0)
    given[40] = dataclasses.replace(given[40], loss=given[40].loss + 0.5)
    law = fit(given, bootstrap=0).law
    others = [abs(law.loss(r.active, r.tokens, r.experts) - r.loss) for r in given]
    assert np.median(others) < 1e-3 and others[40] > 0.49


def test_the_form_with_interactions_wins_where_there_are_some() -> None:
    forms = compare_forms(synthetic_losses.rows(NOISE))
    bics = {name: each.bic for name, each in forms.items() if isinstance(each, Fit)}
    assert min(bics, key=lambda name: bics[name]) == "joint" and len(bics) == 5
    assert bics["dense"] == max(bics.values())


def test_the_gradient_is_the_slope() -> None:
    problem = _problem(synthetic_losses.rows(0.01), "joint")
    weights = np.random.default_rng(0).integers(0, 3, (1, 90)).astype(float)
    objective = problem.objective(weights)
    point = problem.point({name: getattr(PAPER, name) * 1.1 for name in COEFFICIENTS})[None]
    _, gradient = objective(point, np.array([0]))
    for i in range(point.shape[1]):
        step = np.zeros_like(point)
        step[0, i] = 1e-6
        up, _ = objective(point + step, np.array([0]))
        down, _ = objective(point - step, np.array([0]))
        assert gradient[0, i] == pytest.approx((up[0] - down[0]) / 2e-6, rel=1e-4, abs=1e-7)
    again = problem.coefficients(point[0])
    assert again == pytest.approx({name: getattr(PAPER, name) * 1.1 for name in COEFFICIENTS})


def test_extrapolation_is_told(fitted: Fit) -> None:
    assert fitted.law.outside(0.9e9, 500e9, 32) == []
    assert "active parameters: 2e+09 lies outside" in fitted.law.outside(2e9, 500e9, 32)[0]


def test_a_fit_is_read_back(fitted: Fit, tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(fitted.to_dict()))
    assert read_law(path) == fitted.law
    for content, told in (
        ("[]", "no law in it"),
        ('{"law": {}}', "law.A is missing"),
        (
            json.dumps({"law": {**fitted.law.to_dict(), "fitted_on": {}}}),
            "law.fitted_on.active is missing",
        ),
        (
            json.dumps({"law": {**fitted.law.to_dict(), "experts_max": 1}}),
            "experts_start is 1 and law.experts_max 1; both must be above 0",
        ),
        (json.dumps({"law": {**fitted.law.to_dict(), "rmse": -1}}), "law.rmse is -1"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=told):
            read_law(path)


@pytest.mark.parametrize(
    ("given", "form", "told"),
    [
        (synthetic_losses.rows(0), "join", "no form 'join' .did you mean 'joint'"),
        (synthetic_losses.rows(0)[:1], "joint", "1 row is too few .* has 9 coefficients"),
        (synthetic_losses.rows(0)[:9], "joint", "9 rows are too few .* has 9 coefficients"),
        (
            [row for row in synthetic_losses.rows(0) if row.experts == 8],
            "joint",
            "cannot tell .* they need more different active parameters and experts",
        ),
        (
            [row for row in synthetic_losses.rows(0) if row.tokens == 1e11],
            "dense",
            "they need more different tokens",
        ),
    ],
)
def test_rows_that_do_not_allow_a_fit(given: list[Row], form: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        fit(given, form, bootstrap=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda row, draw: 3.0, "All 90 rows have the loss 3: nothing to fit"),
        (lambda row, draw: 10 ** draw(-3, 1.3), "do not bear it|no more than their mean"),
        (lambda row, draw: 20 if row.active == 3e8 else 1e-3, "alpha = .* exponents that large"),
        (lambda row, draw: 1 + row.tokens / 1e11, "loss rises with more tokens at 90 of 90 rows"),
        (lambda row, draw: 3 + draw(0, 1e-3), "no more than their mean"),
    ],
)
def test_absurd_losses_are_told_of(loss: Any, told: str) -> None:
    """In a sentence: no warning of numpy's, no law without a word."""
    draw = np.random.default_rng(0).uniform
    given = [dataclasses.replace(row, loss=loss(row, draw)) for row in synthetic_losses.rows(0)]
    try:
        fitted = fit(given, bootstrap=5)
        said = " ".join(doubts(fitted, given))
    except UserError as error:
        said = str(error)
    assert re.search(told, said), said


def test_a_good_fit_is_not_doubted(fitted: Fit) -> None:
    assert doubts(fitted, synthetic_losses.rows(NOISE)) == []


def test_rows_that_are_not_alike_are_told_of() -> None:
    given = synthetic_losses.rows(0)
    mixed = [dataclasses.replace(row, granularity=2 + row.experts % 4) for row in given]
    (told,) = mixed_families(mixed)
    assert "g = 2 with a shared expert, g = 4 with a shared expert" in told
    assert mixed_families(of_family(mixed, 4, True)) == mixed_families(given) == []


def test_results_are_read(tmp_path: Path) -> None:
    given = synthetic_losses.rows(0)[:2]
    path = synthetic_losses.write(tmp_path / "r.jsonl", given)
    path.write_text(f"# two runs\n\n{path.read_text()}")
    assert read_rows(path) == given


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[1]", "line 2: expected an object, found list"),
        ("{", "line 2 is not valid JSON"),
        ('{"active": 1e8, "tokens": 1e9, "experts": 1}', "line 2: loss is missing"),
        (
            '{"active": -1, "tokens": 1e9, "experts": 1, "loss": 3}',
            "line 2: active is -1.0; it must be in 1..1e.14",
        ),
        (
            '{"active": 1e8, "tokens": 1e9, "experts": 0.5, "loss": 3}',
            "line 2: experts is 0.5; it must be in 1..100000",
        ),
        (
            '{"active": 1e8, "tokens": 1e9, "experts": 1, "loss": 1e300}',
            r"line 2: loss is 1e.300; it must be in 0.001..20",
        ),
        (
            '{"active": 0.3, "tokens": 100, "experts": 1, "loss": 3}',
            "line 2: active is 0.3; it must be in 1..1e",
        ),
        ('{"active": "big", "tokens": 1e9, "experts": 1, "loss": 3}', "line 2: active is 'big'"),
    ],
)
def test_bad_results_are_told(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"# first\n{line}\n")
    with pytest.raises(UserError, match=told):
        read_rows(path)


def test_no_results(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("# nothing yet\n")
    with pytest.raises(UserError, match="has no rows"):
        read_rows(path)
