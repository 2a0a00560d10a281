"""Routings that random tokens do not have: every expert, the fullest, the most blocks, ties."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.export.coreml.expert_blocks import BLOCK_ROWS
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.verify.session import Session

# "same": every token takes the same experts. "staircase": as many experts as possible have one
# token more than a whole number of blocks. "ties": few different scores. "each": one expert after
# the other.
PATTERNS = ("same", "staircase", "ties", "each")


def make_scores(
    pattern: str, tokens: int, experts: int, slots: int, rng: np.random.Generator
) -> np.ndarray:
    """Scores of a block, float32 [tokens, experts], whose `slots` largest are selected."""
    if pattern == "ties":
        return rng.integers(0, 3, (tokens, experts)).astype(np.float32)
    if pattern == "same":
        chosen = np.tile(np.arange(experts - slots, experts), (tokens, 1))
    elif pattern == "staircase":
        chosen = _staircase(tokens, experts, slots)
    else:
        chosen = np.arange(tokens * slots).reshape(tokens, slots) % experts
    scores = np.zeros((tokens, experts), np.float32)
    # A clear order that differs from that of the experts' indices.
    np.put_along_axis(scores, chosen, 1 + rng.permuted(_slots(tokens, slots), axis=1), axis=1)
    return scores


def _slots(tokens: int, slots: int) -> np.ndarray:
    return np.tile(np.arange(slots, dtype=np.float32), (tokens, 1))


def _staircase(tokens: int, experts: int, slots: int) -> np.ndarray:
    """Experts [tokens, slots]: counts of 1, 1 + 32, 1 + 64, ..., which need the most blocks of 32.

    An expert has a token at most once, and all tokens have `slots`.
    """
    step = min(BLOCK_ROWS, tokens)
    counts = np.zeros(experts, int)
    left = tokens * slots
    for count in (1, *[step] * (tokens // step), *[1] * step):
        for expert in range(experts):
            more = min(count, left, tokens - counts[expert])
            counts[expert] += more
            left -= more
    # One expert after the other goes round the tokens, so that none meets a token twice.
    return np.repeat(np.arange(experts), counts).reshape(slots, tokens).T


def decode_scores(tokens: int, experts: int, slots: int, rng: np.random.Generator) -> np.ndarray:
    """Scores of single tokens: first every expert, then ties."""
    half = -(-tokens // 2)
    each = make_scores("each", half, experts, slots, rng)
    return np.concatenate([each, make_scores("ties", tokens - half, experts, slots, rng)])


@contextlib.contextmanager
def routed_by(
    scores: Sequence[np.ndarray] | None, session: Session, model: Model
) -> Iterator[None]:
    """Route the package by `scores` ([tokens, experts] per layer), and MLX's model likewise.

    MLX gets a bias for each token that puts its experts in the order that a stable sort finds, so
    that ties are decided by numpy there. None: both route as they do.
    """
    if scores is None:
        yield
        return
    blocks = [layer.feed_forward for layer in model.layers]
    before = [block.expert_bias for block in blocks]
    try:
        session.scores = list(scores)
        for block, layer_scores in zip(blocks, scores, strict=True):
            order = np.argsort(-layer_scores, axis=-1, kind="stable")
            ranks = np.argsort(order, axis=-1)
            block.expert_bias = mx.array(-10.0 * ranks, mx.float32)  # scores differ by 1 at most
        yield
    finally:
        session.scores = None
        for block, bias in zip(blocks, before, strict=True):
            block.expert_bias = bias
