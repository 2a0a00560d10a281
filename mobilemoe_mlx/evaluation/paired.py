"""Two models on the same questions: the difference of their scores, and how sure it is.

Both answered every question, so questions that are hard for both say nothing of the difference: the
intervals and tests here are of the differences question by question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95  # of the intervals
RESAMPLES = 10_000
_AT_A_TIME = 4_000_000  # numbers drawn together


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two models' right and wrong answers to the same questions."""

    gained: int  # questions that the second alone has right
    lost: int  # that the first alone has right
    p: float  # two-sided, the mid-p form
    p_exact: float  # two-sided, exact: never too small, often too large


@dataclass(frozen=True)
class Interval:
    """A mean and the bootstrap's percentile interval of it at LEVEL."""

    mean: float
    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        """Whether 0 lies in the interval."""
        return self.low <= 0 <= self.high


def resampled_means(
    values: np.ndarray,
    rng: np.random.Generator,
    weights: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Means float64 [resamples] of `values` [n] drawn with replacement, n at a time.

    With `weights` [n] the mean is the sum of the values over the sum of the weights, as of losses
    of texts over their tokens.
    """
    values = np.asarray(values, np.float64)
    means = np.empty(resamples)
    step = max(1, _AT_A_TIME // len(values))
    for start in range(0, resamples, step):
        drawn = rng.integers(0, len(values), (min(step, resamples - start), len(values)))
        totals = values[drawn].sum(axis=1)
        counts = len(values) if weights is None else weights[drawn].sum(axis=1)
        means[start : start + step] = totals / counts
    return means


def interval(mean: float, means: np.ndarray) -> Interval:
    """`mean` with the percentile interval of its resampled `means`."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(mean), float(low), float(high))


def paired_interval(
    base: np.ndarray,
    other: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of `other` - `base`, each [n] in the same order, by the paired bootstrap.

    `weights`: see `resampled_means`. The same `seed` gives the same interval.
    """
    differences = np.asarray(other, np.float64) - np.asarray(base, np.float64)
    mean = differences.sum() / (len(differences) if weights is None else weights.sum())
    rng = np.random.default_rng(seed)
    return interval(mean, resampled_means(differences, rng, weights, resamples))


def average_interval(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Of the average over tasks of the mean difference, each task (base, other) resampled by
    itself, since its questions are its own."""
    rng = np.random.default_rng(seed)
    differences = [np.asarray(other, np.float64) - base for base, other in pairs]
    means = np.mean([resampled_means(each, rng, None, resamples) for each in differences], axis=0)
    return interval(float(np.mean([each.mean() for each in differences])), means)


def is_right_or_wrong(values: np.ndarray) -> bool:
    """Whether all scores are 0 or 1, so that McNemar's test is theirs."""
    return bool(np.isin(values, (0, 1)).all())


def mcnemar(base: np.ndarray, other: np.ndarray) -> McNemar:
    """The test whether two models answer equally many questions rightly, from 0 and 1 each [n].

    Of the questions that one alone has right, each is as likely the first's as the second's, unless
    they differ (McNemar 1947, exact by the binomial distribution). The mid-p form counts the
    observed split by half (Fagerland, Lydersen and Laake 2013).
    """
    right, others = np.asarray(base) == 1, np.asarray(other) == 1
    gained, lost = int((others & ~right).sum()), int((right & ~others).sum())
    discordant = gained + lost
    fewer = min(gained, lost)
    # Binomial(discordant, 1/2): integers as large as they are, divided once.
    tail, observed = 0, 1
    for k in range(fewer + 1):
        tail += observed
        if k < fewer:
            observed = observed * (discordant - k) // (k + 1)
    whole = 2**discordant
    return McNemar(gained, lost, (2 * tail - observed) / whole, min(1.0, 2 * tail / whole))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction (1979) of several tests: no more than one in twenty of such families has
    any p below 0.05 where nothing differs."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
