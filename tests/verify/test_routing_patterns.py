"""Routings made for `mobilemoe verify`: each is what its name says, for blocks of any size."""

from __future__ import annotations

import numpy as np
import pytest

from mobilemoe_mlx.export.coreml.expert_blocks import block_rows, most_blocks
from mobilemoe_mlx.verify.routing_patterns import PATTERNS, decode_scores, make_scores

SIZES = [(256, 60, 4), (96, 7, 2), (16, 7, 2), (2, 3, 1), (64, 30, 4), (40, 4, 4), (33, 5, 1)]


def selected(scores: np.ndarray, slots: int) -> np.ndarray:
    return np.argsort(-scores, axis=-1, kind="stable")[:, :slots]


def make(pattern: str, tokens: int, experts: int, slots: int) -> np.ndarray:
    return make_scores(pattern, tokens, experts, slots, np.random.default_rng(0))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("tokens", "experts", "slots"), SIZES)
def test_every_token_has_its_experts(pattern: str, tokens: int, experts: int, slots: int) -> None:
    scores = make(pattern, tokens, experts, slots)
    assert scores.shape == (tokens, experts) and scores.dtype == np.float32
    if pattern != "ties":  # the others are clear
        ranked = -np.sort(-scores, axis=-1)
        assert (ranked[:, :slots] >= 1).all() and (ranked[:, slots:] == 0).all()


@pytest.mark.parametrize(("tokens", "experts", "slots"), SIZES)
def test_the_staircase_needs_the_most_blocks(tokens: int, experts: int, slots: int) -> None:
    counts = np.bincount(selected(make("staircase", tokens, experts, slots), slots).ravel())
    rows = block_rows(tokens)
    assert np.ceil(counts / rows).sum() == most_blocks(tokens, slots, experts, rows)


@pytest.mark.parametrize(("tokens", "experts", "slots"), SIZES)
def test_the_fullest_and_every_expert(tokens: int, experts: int, slots: int) -> None:
    same = np.bincount(selected(make("same", tokens, experts, slots), slots).ravel())
    assert same.max() == tokens and (same > 0).sum() == slots
    every = set(selected(make("each", tokens, experts, slots), slots).ravel().tolist())
    assert len(every) == min(experts, tokens * slots)


def test_ties_reach_the_last_place() -> None:
    scores = make("ties", 64, 12, 4)
    ranked = -np.sort(-scores, axis=-1)
    assert (ranked[:, 3] == ranked[:, 4]).mean() > 0.5


def test_single_tokens_go_to_every_expert() -> None:
    scores = decode_scores(2 * 15, 60, 4, np.random.default_rng(0))
    assert set(selected(scores[:15], 4).ravel().tolist()) == set(range(60))
    assert len(scores) == 30
    assert decode_scores(0, 60, 4, np.random.default_rng(0)).shape == (0, 60)
