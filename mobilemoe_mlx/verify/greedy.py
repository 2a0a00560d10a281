"""Greedy text of a package against MLX's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.measures import TensorError
from mobilemoe_mlx.numerics.tolerance import GREEDY_GAP, Arithmetic, Limit, limit
from mobilemoe_mlx.verify.calls import plan
from mobilemoe_mlx.verify.session import Session


@dataclass(frozen=True)
class GreedyCheck:
    """Tokens of both up to their first difference."""

    prompt: int  # tokens
    generated: tuple[int, ...]  # by the package, up to the first difference
    expected: tuple[int, ...]  # by MLX
    difference: TensorError | None  # of the logits where they part; None: they do not
    gap: float  # by which MLX's likeliest token leads the package's there, over the logits' RMS
    limit: Limit
    finite: bool = True  # all logits, of both

    @property
    def passed(self) -> bool:
        """Whether they agree, or part at a near tie where the logits are within the limit."""
        if not self.finite:
            return False
        if self.difference is None:
            return True
        within = getattr(self.difference, self.limit.measure) <= self.limit.value
        return within and self.gap <= GREEDY_GAP * self.limit.value


def compare_greedy(
    session: Session, model: Model, prompt: Sequence[int], count: int, arithmetic: Arithmetic
) -> GreedyCheck:
    """Continue `prompt` by up to `count` most likely tokens, fewer at the end of the context."""
    count = min(count, session.context - len(prompt))
    session.reset()
    cache = model.make_cache()
    for call in plan(len(prompt), len(prompt), session.block, session.context):
        part = prompt[call.start : call.start + call.length]
        mine = session.feed(part, call.start, call.is_decode).logits
    theirs = model(mx.array([prompt]), cache)[0, -1]
    generated: list[int] = []
    expected: list[int] = []
    difference, gap, finite = None, 0.0, True
    for position in range(len(prompt), len(prompt) + count):
        generated.append(int(mine[-1].argmax()))
        expected.append(int(mx.argmax(theirs).item()))
        if not (np.isfinite(mine[-1]).all() and mx.isfinite(theirs).all().item()):
            finite = False
            break
        if generated[-1] != expected[-1]:
            reference = np.array(theirs.astype(mx.float32))
            difference = TensorError.between(mine[-1:], reference[None])
            lead = reference[expected[-1]] - reference[generated[-1]]
            gap = float(lead / np.sqrt(np.mean(np.square(reference))))
            break
        if position + 1 < len(prompt) + count:
            mine = session.feed(generated[-1:], position, True).logits
            theirs = model(mx.array([generated[-1:]]), cache)[0, -1]
    return GreedyCheck(
        prompt=len(prompt),
        generated=tuple(generated),
        expected=tuple(expected),
        difference=difference,
        gap=gap,
        limit=limit(arithmetic, len(model.layers)),
        finite=finite,
    )
