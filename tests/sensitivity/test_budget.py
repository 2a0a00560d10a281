"""The suggestion under a budget, against every possible one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mobilemoe_mlx.sensitivity.budget import cheapest
from mobilemoe_mlx.sensitivity.parts import Part


def parts(sizes: list[int]) -> list[Part]:
    return [Part(f"p{i}", "q_proj", i, 32 * size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_is_cheaper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    given = parts(rng.integers(1, 40, 9).tolist())
    costs = {p.parameter: float(rng.normal(0.3, 1)) for p in given}  # some rounding helps
    least = sum(p.int4_bytes for p in given)
    budget = int(rng.integers(least, sum(p.bf16_bytes for p in given)))
    best = min(
        sum(costs[p.parameter] for p, r in zip(given, rounded, strict=True) if r)
        for rounded in itertools.product((False, True), repeat=len(given))
        if sum(p.int4_bytes if r else p.bf16_bytes for p, r in zip(given, rounded, strict=True))
        <= budget
    )
    found = cheapest(given, costs, budget)
    assert found is not None
    assert found.cost == pytest.approx(best)
    assert found.cost == pytest.approx(sum(costs[p.parameter] for p in found.rounded))
    taken = sum(p.int4_bytes if p in found.rounded else p.bf16_bytes for p in given)
    assert taken == found.nbytes <= budget


def test_ends() -> None:
    given = parts([3, 5, 8])
    costs = dict.fromkeys(("p0", "p1", "p2"), 1.0)
    least = sum(p.int4_bytes for p in given)
    assert cheapest(given, costs, least - 1) is None
    found = cheapest(given, costs, least)
    assert found is not None and found.rounded == tuple(given)
    everything = cheapest(given, costs, sum(p.bf16_bytes for p in given))
    assert everything is not None and everything.rounded == () and everything.cost == 0


def test_as_many_tensors_as_the_largest_model_has() -> None:
    """32 layers of nine tensors, in their proportions; in a second or two."""
    rng = np.random.default_rng(0)
    given = parts([64, 16, 16, 64, 160, 160, 160, 3000, 1500] * 32)
    costs = {p.parameter: float(rng.gamma(1.0)) * p.size for p in given}
    budget = sum(p.int4_bytes for p in given) * 3 // 2
    found = cheapest(given, costs, budget)
    assert found is not None and budget - 5000 * 48 < found.nbytes <= budget
