"""The law against the values that the paper's coefficients give, and its own differences."""

from __future__ import annotations

import numpy as np
import pytest

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.scaling.law import PAPER

EXPERTS = np.array([1, 2, 4, 8, 16, 32])


def test_listed_values() -> None:
    """N = 0.3 and D = 500 billion, computed apart from this code."""
    listed = [2.3907, 2.3555, 2.3453, 2.3458, 2.3502, 2.3552]
    assert PAPER.loss(active=0.3e9, tokens=500e9, experts=EXPERTS) == pytest.approx(
        listed, abs=1e-4
    )
    one = PAPER.loss(active=0.3e9, tokens=500e9, experts=8)
    assert isinstance(one, float) and one == pytest.approx(2.3458, abs=1e-4)


def test_effective_experts_begin_at_one_and_saturate() -> None:
    effective = PAPER.effective_experts(np.array([1.0, 2.0, 8.0, 32.0, 1e9]))
    assert effective[0] == pytest.approx(1) and effective[-1] == pytest.approx(32)
    assert np.all(np.diff(effective) > 0) and np.all(effective <= [1.001, 2, 8, 32, 32])


def test_a_dense_model_obeys_chinchilla() -> None:
    """With E = 1 the law is A N^alpha + B D^beta + c."""
    plain = 0.2388 * 0.5**-0.2833 + 0.6019 * 200**-0.3210 + 1.9730
    assert PAPER.loss(0.5e9, 200e9, 1) == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize("at", [(0.3e9, 500e9, 8.0), (0.9e9, 100e9, 1.5), (2e8, 6e12, 31.0)])
def test_gradient_is_the_slope(at: tuple[float, float, float]) -> None:
    gradient = PAPER.gradient(*at)
    for i, exact in enumerate((gradient.active, gradient.tokens, gradient.experts)):
        step = np.zeros(3)
        step[i] = at[i] * 1e-5
        slope = (PAPER.loss(*(at + step)) - PAPER.loss(*(at - step))) / (2 * step[i])
        assert exact == pytest.approx(slope, rel=1e-6)


def test_extrapolation_is_told() -> None:
    assert PAPER.outside(0.3e9, 500e9, 8) == []
    tokens, experts = PAPER.outside(0.3e9, 6e12, 64)
    assert "tokens: 6e+12 lies outside" in tokens and "1e+11 to 5e+11" in tokens
    assert "experts: 64" in experts


def test_moderate_sparsity_over_the_papers_grid() -> None:
    """The paper's conclusion: E = 8 has the lowest loss, taken over its whole grid."""
    active, tokens, experts = np.meshgrid([0.3e9, 0.5e9, 0.9e9], np.arange(1, 6) * 1e11, EXPERTS)
    mean = PAPER.loss(active, tokens, experts).mean(axis=(0, 1))
    assert EXPERTS[mean.argmin()] == 8


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0, 1e9, 8), "0 active parameters"),
        ((1e9, -2.0, 8), "-2 tokens"),
        ((1e9, float("nan"), 8), "nan tokens"),
        ((1e9, 1e9, 0.5), "0.5 experts"),
        ((1e9, 1e9, np.array([1, 8, 0])), "0 experts"),
        ((1e9, 1e9, float("nan")), "nan experts"),
    ],
)
def test_senseless_numbers(arguments: tuple[float, float, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        PAPER.loss(*arguments)
