"""A law fitted to measured losses: Huber's loss on ln L, L-BFGS from many starts, intervals.

All forms are sums of exponentials of linear features and a constant,

    L = exp(X θ) + exp(Y φ) + c,

the features of the joint form being 1, ln Ê, ln N and ln Ê ln N, and the same of D. A form is which
features it has. Huber's threshold is 1e-3, as in Chinchilla's fit (arXiv 2203.15556); the paper's
own loss and optimiser were not to be found.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.scaling.law import BILLION, PAPER, Law, Range
from mobilemoe_mlx.scaling.lbfgs import Array, minimise
from mobilemoe_mlx.scaling.results import Row

_HUBER = 1e-3  # of ln L
_STARTS, _FINISHED = 48, 4
_OTHER_STARTS = 2  # of each draw of the bootstrap, beside the best point
_TOLERANCE = 1e-7  # values of different starts then agree to about 1e-8
_SPREAD = (2.5, 97.5)  # percentiles of the bootstrap: 95 % intervals

# Form -> coefficients that it has, beside A, B and c; the others are 0.
FORMS: dict[str, tuple[str, ...]] = {
    "joint": ("delta", "alpha", "gamma", "omega", "beta", "zeta"),  # the paper's
    "size interaction": ("delta", "alpha", "gamma", "omega", "beta"),
    "data interaction": ("delta", "alpha", "omega", "beta", "zeta"),
    "no interaction": ("delta", "alpha", "omega", "beta"),
    "dense": ("alpha", "beta"),  # Chinchilla's: the experts change nothing
}
_BY_SIZE, _BY_DATA = ("delta", "alpha", "gamma"), ("omega", "beta", "zeta")
COEFFICIENTS = ("A", "delta", "alpha", "gamma", "B", "omega", "beta", "zeta", "c")


@dataclass(frozen=True)
class Fit:
    """A fitted law, and how far it can be trusted."""

    form: str
    law: Law
    intervals: dict[str, tuple[float, float]]  # coefficient -> 95 % of the bootstrap
    rows: int
    parameters: int
    huber: float  # mean of Huber's loss
    bic: float  # of the squared errors in ln L; the lower, the better for its coefficients
    held_out_rmse: float | None  # nats per token, of the largest runs, fitted without them
    held_out_rows: int
    residuals: tuple[float, ...]  # predicted less measured, nats per token, in the rows' order

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {**dataclasses.asdict(self), "law": self.law.to_dict()}


@dataclass(frozen=True)
class _Problem:
    """Rows as features, for one form. Each term's columns are orthonormal for the optimiser."""

    log_loss: Array  # [rows]
    by_size: Array  # [rows, features], orthonormal times sqrt(rows)
    by_data: Array
    size_names: tuple[str, ...]
    data_names: tuple[str, ...]
    size_mixing: Array  # [features, features]: coefficients = mixing @ parameters
    data_mixing: Array

    def __len__(self) -> int:
        return self.by_size.shape[1] + self.by_data.shape[1] + 1

    def objective(self, weights: Array) -> Any:
        """Mean Huber loss of ln L, for `minimise`; `weights` [starts, rows] count each row."""
        split = self.by_size.shape[1]

        def value(points: Array, rows: npt.NDArray[np.int64]) -> tuple[Array, Array]:
            weight = weights[rows]
            # A step may go too far; the minimiser takes none to where there is no number.
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                parts = (
                    np.exp(points[:, :split] @ self.by_size.T),
                    np.exp(points[:, split:-1] @ self.by_data.T),
                    np.exp(points[:, -1:]),
                )
                total = sum(parts)
                error = np.log(total) - self.log_loss
                slope = np.clip(error, -_HUBER, _HUBER) * weight
                small = np.abs(error) <= _HUBER
                each = np.where(small, error**2 / 2, _HUBER * (np.abs(error) - _HUBER / 2))
                pull = slope / total
                gradient = np.concatenate(
                    [
                        (pull * parts[0]) @ self.by_size,
                        (pull * parts[1]) @ self.by_data,
                        np.sum(pull * parts[2], axis=1, keepdims=True),
                    ],
                    axis=1,
                )
                count = weight.sum(axis=1)
                scale = _HUBER * count  # so that tolerances mean the same whatever the threshold
                return np.sum(each * weight, axis=1) / scale, gradient / scale[:, None]

        return value

    def coefficients(self, point: Array) -> dict[str, float]:
        """The law's coefficients at a point of the optimiser."""
        split = self.by_size.shape[1]
        size, data = self.size_mixing @ point[:split], self.data_mixing @ point[split:-1]
        named = dict.fromkeys(COEFFICIENTS, 0.0)
        with np.errstate(over="ignore"):
            named["A"], named["B"] = float(np.exp(size[0])), float(np.exp(data[0]))
            named["c"] = float(np.exp(point[-1]))
        named.update(zip(self.size_names, map(float, size[1:]), strict=True))
        named.update(zip(self.data_names, map(float, data[1:]), strict=True))
        return named

    def point(self, coefficients: dict[str, float]) -> Array:
        """The other way: where in the optimiser's space some coefficients are."""
        size = [math.log(coefficients["A"]), *(coefficients[name] for name in self.size_names)]
        data = [math.log(coefficients["B"]), *(coefficients[name] for name in self.data_names)]
        return np.concatenate(
            [
                np.linalg.solve(self.size_mixing, size),
                np.linalg.solve(self.data_mixing, data),
                [math.log(coefficients["c"])],
            ]
        )


def fit(
    rows: Sequence[Row],
    form: str = "joint",
    *,
    bootstrap: int = 200,
    hold_out: float = 0.2,
    seed: int = 0,
) -> Fit:
    """Fit a form of the law to measured losses.

    `bootstrap`: draws of the rows for the intervals. `hold_out`: the share of rows, those with the
    most training FLOPs (active x tokens), that a second fit does without to be tested on them.
    Raises UserError for an unknown form, for too few rows, where the rows cannot tell the form's
    coefficients apart, and for losses that no such law has.
    """
    if form not in FORMS:
        raise UserError(
            f"There is no form '{form}'{did_you_mean(form, FORMS)}; known: {', '.join(FORMS)}."
        )
    if bootstrap < 0 or seed < 0:
        raise UserError(f"bootstrap is {bootstrap} and seed {seed}; both must be 0 or more.")
    random = np.random.default_rng(seed)
    problem = _problem(rows, form)
    best, value = _best(problem, _approached(problem, random))
    law = _law(problem.coefficients(best), rows, form)
    predicted = _predictions(law, rows)
    measured = np.array([row.loss for row in rows])
    if predicted is None:
        raise UserError(
            f"The fit of the form '{form}' runs off to coefficients beyond numbers: these rows, "
            f"with losses from {measured.min():.4g} to {measured.max():.4g}, do not bear it."
        )
    squared = float(np.mean((np.log(predicted) - np.log(measured)) ** 2))
    law = dataclasses.replace(law, rmse=float(np.sqrt(np.mean((predicted - measured) ** 2))))
    held_out, number = _held_out(rows, form, hold_out, random)
    return Fit(
        form=form,
        law=law,
        intervals=_intervals(problem, best, bootstrap, random),
        rows=len(rows),
        parameters=len(problem),
        huber=value * _HUBER,
        bic=len(rows) * math.log(max(squared, 1e-300)) + len(problem) * math.log(len(rows)),
        held_out_rmse=held_out,
        held_out_rows=number,
        residuals=tuple(float(each) for each in predicted - measured),
    )


def compare_forms(
    rows: Sequence[Row], done: Fit | None = None, *, seed: int = 0
) -> dict[str, Fit | str]:
    """Each form fitted without intervals, but for the one that is `done` already.

    In a fit's place there is a sentence where the rows do not allow the form.
    """
    fits: dict[str, Fit | str] = {}
    for form in FORMS:
        if done and form == done.form:
            fits[form] = done
            continue
        try:
            fits[form] = fit(rows, form, bootstrap=0, seed=seed)
        except UserError as error:
            fits[form] = str(error)
    return fits


def _problem(rows: Sequence[Row], form: str) -> _Problem:
    size = np.log(np.array([row.active for row in rows]) / BILLION)
    data = np.log(np.array([row.tokens for row in rows]) / BILLION)
    e = np.log(PAPER.effective_experts(np.array([row.experts for row in rows])))
    names = [tuple(n for n in each if n in FORMS[form]) for each in (_BY_SIZE, _BY_DATA)]
    needed = sum(map(len, names)) + 3
    if len(rows) <= needed:
        count = "1 row is" if len(rows) == 1 else f"{len(rows)} rows are"
        raise UserError(
            f"{count} too few for the form '{form}', which has {needed} coefficients: "
            "more rows are needed than coefficients."
        )
    if len({row.loss for row in rows}) < 2:
        raise UserError(f"All {len(rows)} rows have the loss {rows[0].loss:g}: nothing to fit.")
    features = [
        np.stack([np.ones_like(e), *(columns[name] for name in chosen)], axis=1)
        for chosen, columns in zip(
            names,
            (
                {"delta": e, "alpha": size, "gamma": e * size},
                {"omega": e, "beta": data, "zeta": e * data},
            ),
            strict=True,
        )
    ]
    for what, columns in zip(("active parameters", "tokens"), features, strict=True):
        if np.linalg.matrix_rank(columns) < columns.shape[1]:
            raise UserError(
                f"The rows cannot tell the coefficients of the form '{form}' apart: they need more "
                f"different {what}{' and experts, in all combinations' if form != 'dense' else ''}."
            )
    (q, r), (u, s) = (np.linalg.qr(each) for each in features)
    root = math.sqrt(len(rows))
    return _Problem(
        log_loss=np.log([row.loss for row in rows]),
        by_size=q * root,
        by_data=u * root,
        size_names=names[0],
        data_names=names[1],
        size_mixing=np.linalg.inv(r) * root,
        data_mixing=np.linalg.inv(s) * root,
    )


def _approached(problem: _Problem, random: np.random.Generator) -> Array:
    """Many starts, sensible laws drawn at random, some steps on, the lowest first."""
    least = float(np.exp(problem.log_loss.min()))
    starts = []
    for _ in range(_STARTS):
        drawn = {
            "A": math.exp(random.uniform(-2.5, 1)),
            "B": math.exp(random.uniform(-2.5, 1)),
            "c": least * random.uniform(0.3, 0.97),
            "alpha": random.uniform(-0.6, -0.05),
            "beta": random.uniform(-0.6, -0.05),
            "delta": random.uniform(-0.3, 0.3),
            "omega": random.uniform(-0.3, 1.2),
            "gamma": random.uniform(-0.1, 0.1),
            "zeta": random.uniform(-0.4, 0.1),
        }
        starts.append(problem.point(drawn))
    objective = problem.objective(np.ones((_STARTS, len(problem.log_loss))))
    points, values = minimise(objective, np.array(starts), steps=100)
    ordered: Array = points[np.argsort(values)]
    return ordered


def _best(problem: _Problem, approached: Array) -> tuple[Array, float]:
    """The lowest of the most promising starts, brought to their end."""
    starts = approached[:_FINISHED]
    objective = problem.objective(np.ones((len(starts), len(problem.log_loss))))
    points, values = minimise(objective, starts, steps=1500, tolerance=_TOLERANCE)
    lowest = int(np.argmin(values))
    return points[lowest], float(values[lowest])


def _intervals(
    problem: _Problem, best: Array, draws: int, random: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Percentiles of the coefficients over fits to rows drawn with replacement.

    Each draw begins at the best point and at some of the other starts, since noise can make another
    minimum the lowest.
    """
    if not draws:
        return {}
    rows = len(problem.log_loss)
    weights = random.multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(float)
    others = _approached(problem, random)
    others = others[random.integers(len(others), size=(draws, _OTHER_STARTS))]
    starts = np.concatenate([np.tile(best, (draws, 1, 1)), others], axis=1)
    points, values = minimise(
        problem.objective(np.repeat(weights, 1 + _OTHER_STARTS, axis=0)),
        starts.reshape(-1, len(best)),
        steps=600,
        tolerance=_TOLERANCE,
    )
    lowest = np.nanargmin(values.reshape(draws, -1), axis=1)
    drawn = [
        problem.coefficients(point)
        for point in points.reshape(starts.shape)[np.arange(draws), lowest]
    ]
    return {
        name: (float(low), float(high))
        for name in COEFFICIENTS
        for low, high in [np.percentile([each[name] for each in drawn], _SPREAD)]
    }


def _held_out(
    rows: Sequence[Row], form: str, share: float, random: np.random.Generator
) -> tuple[float | None, int]:
    """The error on the largest runs of a fit to the others; none where too few are left."""
    number = round(share * len(rows))
    order = sorted(rows, key=lambda row: row.active * row.tokens)
    kept, out = order[: len(rows) - number], order[len(rows) - number :]
    if not out:
        return None, 0
    try:
        problem = _problem(kept, form)
    except UserError:
        return None, 0
    point, _ = _best(problem, _approached(problem, random))
    law = _law(problem.coefficients(point), kept, form)
    if (predicted := _predictions(law, out)) is None:
        return None, 0
    errors = predicted - np.array([row.loss for row in out])
    return float(np.sqrt(np.mean(errors**2))), number


def _law(coefficients: dict[str, float], rows: Sequence[Row], form: str) -> Law:
    def span(values: list[float]) -> tuple[float, float]:
        return min(values), max(values)

    return Law(
        **coefficients,
        fitted_on=Range(
            active=span([row.active for row in rows]),
            tokens=span([row.tokens for row in rows]),
            experts=span([row.experts for row in rows]),
        ),
        rmse=math.nan,  # until it is measured
    )


def _predictions(law: Law, rows: Sequence[Row]) -> Array | None:
    """The law's losses of the rows; None where they are too large for numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        predicted: Array = law.loss(
            np.array([row.active for row in rows]),
            np.array([row.tokens for row in rows]),
            np.array([row.experts for row in rows]),
        )
    known = [getattr(law, name) for name in COEFFICIENTS]
    # Squares of them are taken, too.
    return predicted if np.isfinite(known).all() and (predicted < 1e100).all() else None
