"""The two forms of the sampler choose the same tokens, and those that the filters allow."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.sampling import Sampler

VOCABULARY = 3000
HISTORY = [5, 7, 2999, 7, *range(30, 70)]


def logits_of(step: int, sharpness: float) -> np.ndarray:
    rng = np.random.default_rng(step)
    return (rng.normal(size=VOCABULARY) * sharpness).astype(np.float32)


@pytest.mark.parametrize("sharpness", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.5, "top_p": 1e-6},
        {"temperature": 1.0, "top_p": 0.999999},
        {"temperature": 0.7, "top_k": 1},
        {"temperature": 0.7, "top_k": 40},
        {"temperature": 0.7, "top_k": VOCABULARY},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 2.0, "top_p": 0.95, "min_p": 0.01, "top_k": 100},
    ],
)
def test_both_forms_choose_the_same(
    options: dict[str, Any], penalty: float, sharpness: float
) -> None:
    chosen = GenerationOptions(seed=4, repetition_penalty=penalty, **options)
    ways: list[list[int]] = [[], []]
    sampler = Sampler(chosen, VOCABULARY)
    for step in range(20):
        history = HISTORY + ways[0]
        logits = mx.array(logits_of(step, sharpness)[None])
        ways[0].append(int(sampler(mx.array(history), logits).item()))
    sampler = Sampler(chosen, VOCABULARY)
    for step in range(20):
        logits_before = logits_of(step, sharpness)
        given = logits_before.copy()
        ways[1].append(sampler.choose(HISTORY + ways[1], given))
        np.testing.assert_array_equal(given, logits_before)
    assert ways[0] == ways[1]
    if not options or options.get("top_k") == 1:
        assert penalty != 1 or ways[0] == [int(logits_of(n, sharpness).argmax()) for n in range(20)]


def test_top_p_keeps_the_fewest_that_have_the_mass() -> None:
    """Probabilities 0.5, 0.3, 0.15, 0.05: three of them are needed for 0.9."""
    logits = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))
    sampler = Sampler(GenerationOptions(temperature=1.0, top_p=0.9, seed=0), 4)
    assert {sampler.choose([], logits) for _ in range(200)} == {1, 2, 3}
    sampler = Sampler(GenerationOptions(temperature=1.0, top_p=0.75, seed=0), 4)
    assert {sampler.choose([], logits) for _ in range(200)} == {1, 3}
