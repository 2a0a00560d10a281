"""Paired statistics, against formulas and counts that are worked out here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mobilemoe_mlx.evaluation.paired import (
    average_interval,
    holm,
    is_right_or_wrong,
    mcnemar,
    paired_interval,
)


def answers(gained: int, lost: int, both: int = 3, neither: int = 2) -> tuple[np.ndarray, ...]:
    pairs = [(0, 1)] * gained + [(1, 0)] * lost + [(1, 1)] * both + [(0, 0)] * neither
    base, other = np.array(pairs, float).T
    return base, other


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (2, 7), (7, 2), (5, 5), (3, 9)])
def test_mcnemar_counts_every_way_the_questions_could_fall(gained: int, lost: int) -> None:
    """Each discordant question falls to either side alike: all ways are counted."""
    found = mcnemar(*answers(gained, lost))
    n = gained + lost
    distance = abs(gained - lost)
    ways = [abs(2 * sum(sides) - n) for sides in itertools.product((0, 1), repeat=n)]
    as_far = sum(each >= distance for each in ways) / len(ways)
    same = sum(each == distance for each in ways) / len(ways)
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p_exact == pytest.approx(as_far)
    assert found.p == pytest.approx(as_far - same / 2 if distance else 1.0)


def test_mcnemar_of_the_textbook() -> None:
    """Fagerland, Lydersen and Laake (2013), airway hyper-responsiveness: 1 against 7."""
    found = mcnemar(*answers(7, 1))
    assert found.p_exact == pytest.approx(0.0703, abs=5e-5)
    assert found.p == pytest.approx(0.0391, abs=5e-5)


def test_mcnemar_of_many_questions_is_nearly_normal() -> None:
    found = mcnemar(*answers(5200, 5000))
    z = 200 / math.sqrt(10200)
    assert found.p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=2e-3)


def test_interval_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=900)
    other = base + rng.normal(0.2, 1.0, size=900)
    found = paired_interval(base, other)
    difference = other - base
    half = 1.959964 * difference.std(ddof=1) / math.sqrt(900)
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.05 * half)
    assert not found.has_zero
    assert paired_interval(base, other) == found  # seeded
    assert paired_interval(base, other, seed=1) != found
    assert paired_interval(base, base).has_zero


def test_interval_keeps_its_promise() -> None:
    """Of 300 experiments with a known difference about 95 % have it within their interval."""
    rng = np.random.default_rng(0)
    held = 0
    for experiment in range(300):
        base = rng.normal(size=80)
        other = base + rng.normal(0.1, 0.5, size=80)
        found = paired_interval(base, other, seed=experiment, resamples=500)
        held += found.low <= 0.1 <= found.high
    assert 0.90 < held / 300 < 0.98


def test_weights_make_it_a_ratio() -> None:
    """Losses of texts over their tokens: long texts count for more."""
    base, other = np.array([10.0, 1.0, 4.0]), np.array([20.0, 1.0, 5.0])
    weights = np.array([10.0, 1.0, 2.0])
    assert paired_interval(base, other, weights=weights).mean == pytest.approx(11 / 13)
    even = paired_interval(base, other, weights=np.full(3, 2.0))
    assert even.mean == pytest.approx(paired_interval(base, other).mean / 2)
    assert even.low == pytest.approx(paired_interval(base, other).low / 2)


def test_average_over_tasks_counts_each_task_once() -> None:
    rng = np.random.default_rng(5)
    small, large = rng.normal(1.0, 1.0, 50), rng.normal(0.0, 1.0, 5000)
    pairs = [(np.zeros(50), small), (np.zeros(5000), large)]
    found = average_interval(pairs, resamples=4000)
    assert found.mean == pytest.approx((small.mean() + large.mean()) / 2)
    deviation = math.sqrt(small.var() / 50 + large.var() / 5000) / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * deviation, rel=0.06)


def test_holm() -> None:
    """Worked by hand: 4 x 0.005, 3 x 0.01, then 2 x 0.03, and never less than one before."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert [*found] == ["a", "b", "c", "d"]


def test_what_mcnemar_is_for() -> None:
    assert is_right_or_wrong(np.array([0, 1, 1.0]))
    assert not is_right_or_wrong(np.array([0, 0.5]))
