"""Greedy text of a package against that of an engine, which is the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mobilemoe_mlx.engines import Engine
from mobilemoe_mlx.numerics.measures import TensorError
from mobilemoe_mlx.numerics.tolerance import GREEDY_GAP, Arithmetic, Limit, limit
from mobilemoe_mlx.verify.calls import plan
from mobilemoe_mlx.verify.session import Session


@dataclass(frozen=True)
class GreedyCheck:
    """Tokens of both up to their first difference."""

    prompt: int  # tokens
    generated: tuple[int, ...]  # by the package, up to the first difference
    expected: tuple[int, ...]  # by the reference
    difference: TensorError | None  # of the logits where they part; None: they do not
    # By which the reference's likeliest token leads the package's there, over the logits' RMS.
    gap: float
    limit: Limit
    finite: bool = True  # all logits of the package

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
    session: Session, engine: Engine, prompt: Sequence[int], count: int, arithmetic: Arithmetic
) -> GreedyCheck:
    """Continue `prompt` by up to `count` most likely tokens, fewer at the end of the context.

    Raises DamagedModel when the logits of `engine`, the reference, are not finite.
    """
    count = min(count, session.context - len(prompt))
    session.reset()
    reference = engine.session()
    for call in plan(len(prompt), len(prompt), session.block, session.context):
        part = prompt[call.start : call.start + call.length]
        mine = session.feed(part, call.start, call.is_decode).logits
    theirs = reference.feed(prompt)[-1]
    generated: list[int] = []
    expected: list[int] = []
    difference, gap, finite = None, 0.0, True
    for position in range(len(prompt), len(prompt) + count):
        generated.append(int(mine[-1].argmax()))
        expected.append(int(theirs.argmax()))
        if not np.isfinite(mine[-1]).all():
            finite = False
            break
        if generated[-1] != expected[-1]:
            difference = TensorError.between(mine[-1:], theirs[None])
            lead = theirs[expected[-1]] - theirs[generated[-1]]
            gap = float(lead / np.sqrt(np.mean(np.square(theirs, dtype=np.float64))))
            break
        if position + 1 < len(prompt) + count:
            mine = session.feed(generated[-1:], position, True).logits
            theirs = reference.feed(generated[-1:])[-1]
    return GreedyCheck(
        prompt=len(prompt),
        generated=tuple(generated),
        expected=tuple(expected),
        difference=difference,
        gap=gap,
        limit=limit(arithmetic, engine.args.num_hidden_layers),
        finite=finite,
    )
