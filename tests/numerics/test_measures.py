"""Measures of error where numbers are extreme, and figures as JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mobilemoe_mlx.numerics.json_values import json_values
from mobilemoe_mlx.numerics.measures import TensorError, all_not_finite
from mobilemoe_mlx.numerics.values import LayerValues, Trace


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_errors_are_relative_at_every_size(size: float) -> None:
    """The square of 1e30 is no float32."""
    reference = np.full((2, 3), size, np.float32)
    measured = reference.copy()
    measured[0, 0] *= np.float32(1.5)
    error = TensorError.between(measured, reference)
    assert error.max == pytest.approx(0.5)
    assert error.mean == pytest.approx(0.5 / 6)
    assert error.cosine == pytest.approx(6.5 / math.sqrt(6 * 7.25))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("both", [False, True])
def test_what_is_not_finite_makes_every_measure_nan(wrong: float, both: bool) -> None:
    reference = np.ones((2, 3), np.float32)
    measured = reference.copy()
    measured[1, 2] = wrong
    pair = (measured, measured) if both else (measured, reference)
    for one, other in (pair, pair[::-1]):
        error = TensorError.between(one, other)
        assert all(math.isnan(value) for value in (error.max, error.mean, error.cosine))


def test_zeros() -> None:
    zeros, ones = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    assert TensorError.between(zeros, zeros) == TensorError(0.0, 0.0, 1.0)
    assert TensorError.between(ones, zeros) == TensorError(math.inf, math.inf, 0.0)
    assert TensorError.between(zeros, ones) == TensorError(1.0, 1.0, 0.0)


def test_the_first_values_that_are_not_finite_are_named() -> None:
    def trace() -> Trace:
        layers = [
            LayerValues(np.ones((2, 4)), np.ones((2, 3)), np.zeros((2, 1), int)) for _ in "ab"
        ]
        return Trace(layers, np.ones((2, 5)))

    good, in_scores, in_logits = trace(), trace(), trace()
    in_scores.layers[1].scores[0, 0] = np.inf
    in_scores.logits[0, 0] = np.nan
    in_logits.logits[1, 1] = np.nan
    assert all_not_finite({"A": good, "B": in_scores, "C": in_logits}) == (
        "layer 1's router scores of B",
        "the logits of C",
    )


def test_json_has_no_nan() -> None:
    content = json_values({"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf, "d": "NaN"}})
    assert json.loads(json.dumps(content, allow_nan=False)) == {
        "a": [None, 1.5, [None]],
        "b": {"c": None, "d": "NaN"},
    }
