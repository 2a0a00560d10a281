"""Feed tokens to a saved export as an app does, and gather what it computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.numerics.values import LayerValues, Trace
from mobilemoe_mlx.verify.calls import Call


class Step(NamedTuple):
    """What one call computed for its tokens, padding left out."""

    layers: list[LayerValues]
    logits: np.ndarray  # float32 [rows, vocabulary]: the last token's, or every token's


class Session(Protocol):
    """A saved export with its key/value cache."""

    args: ModelArgs
    context: int  # positions in the cache
    block: int  # most tokens of one call
    # Biased scores, float32 [positions, experts] per layer, by which it selects instead of by its
    # own, if it can; None: by its own.
    scores: list[np.ndarray] | None
    shows_routing: bool  # whether its steps tell scores and experts

    def reset(self) -> None:
        """Empty the cache."""

    def feed(self, tokens: Sequence[int], position: int, is_decode: bool) -> Step:
        """Run one call: `tokens`, one to `block` of them, the first at `position`."""


def run(session: Session, tokens: Sequence[int], calls: Iterable[Call]) -> tuple[Trace, list[int]]:
    """Feed `tokens` by `calls` to an empty cache; -> (values, tokens whose logits they are)."""
    session.reset()
    total = len(tokens)
    filled: list[LayerValues] = []
    logits: dict[int, np.ndarray] = {}
    for call in calls:
        end = call.start + call.length
        step = session.feed(tokens[call.start : end], call.start, call.is_decode)
        if not filled:
            filled = [_empty(layer, total) for layer in step.layers]
        for whole, part in zip(filled, step.layers, strict=True):
            for destination, values in zip(_arrays(whole), _arrays(part), strict=True):
                destination[call.start : end] = values
        logits |= {end - len(step.logits) + i: row for i, row in enumerate(step.logits)}
    rows = sorted(logits)
    return Trace(filled, np.stack([logits[row] for row in rows])), rows


def _arrays(values: LayerValues) -> tuple[np.ndarray, ...]:
    return values.hidden, values.scores, values.experts


def _empty(values: LayerValues, tokens: int) -> LayerValues:
    return LayerValues(*(np.zeros((tokens, *a.shape[1:]), a.dtype) for a in _arrays(values)))
