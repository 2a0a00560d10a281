"""The minimiser on functions whose minimum is known."""

from __future__ import annotations

import numpy as np
import pytest

from mobilemoe_mlx.scaling.lbfgs import Array, minimise


def rosenbrock(points: Array, rows: object) -> tuple[Array, Array]:
    """(1 - x)² + 100 (y - x²)², least at (1, 1): a curved valley."""
    x, y = points.T
    value = (1 - x) ** 2 + 100 * (y - x**2) ** 2
    gradient = np.stack([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)], axis=1)
    return value, gradient


def test_a_curved_valley_from_many_starts() -> None:
    starts = np.random.default_rng(0).uniform(-2, 2, (20, 2))
    points, values = minimise(rosenbrock, starts)
    assert points == pytest.approx(np.ones((20, 2)), abs=1e-6)
    assert values == pytest.approx(np.zeros(20), abs=1e-12)


def test_rows_do_not_depend_on_each_other() -> None:
    starts = np.random.default_rng(1).uniform(-2, 2, (5, 2))
    together, _ = minimise(rosenbrock, starts, steps=7)
    for start, point in zip(starts, together, strict=True):
        alone, _ = minimise(rosenbrock, start[None], steps=7)
        assert alone[0] == pytest.approx(point, rel=1e-12)


def test_rows_know_their_number() -> None:
    """Each row has its own, ill-conditioned bowl."""
    centres = np.arange(12.0).reshape(4, 3)
    scales = np.array([1.0, 100.0, 1e4])

    def bowls(points: Array, rows: Array) -> tuple[Array, Array]:
        off = points - centres[rows]
        return np.sum(scales * off**2, axis=1) / 2, scales * off

    points, _ = minimise(bowls, np.zeros((4, 3)))
    assert points == pytest.approx(centres, abs=1e-8)


def test_where_there_are_no_numbers_it_does_not_go() -> None:
    def logarithm(points: Array, rows: object) -> tuple[Array, Array]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (points - np.log(points))[:, 0], 1 - 1 / points  # least at 1, nothing below 0

    points, _ = minimise(logarithm, np.array([[30.0], [1e-3]]))
    assert points == pytest.approx(np.ones((2, 1)), abs=1e-6)
