"""Run one case in a saved export and in MLX."""

from __future__ import annotations

import dataclasses

import mlx.core as mx

from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.numerics.values import trace_mlx
from mobilemoe_mlx.verify.cases import make_case
from mobilemoe_mlx.verify.judgement import CaseJudgement, judge
from mobilemoe_mlx.verify.routing_patterns import routed_by
from mobilemoe_mlx.verify.session import Session, run

_ATTEMPTS = 3  # of sequences whose first logits a near tie reaches


def run_case(
    name: str, session: Session, model: Model, arithmetic: Arithmetic, seed: int = 0
) -> CaseJudgement:
    """Run the case `name` in the export's `session` and in `model`, and compare.

    Where a near tie before the first logits leaves none to judge, which a right export gives for
    one in thousands of sequences, the tokens of the next seeds are taken.
    """
    for attempt in range(_ATTEMPTS):
        case = make_case(name, session, seed + attempt)
        with routed_by(case.routing, session, model):
            measured, rows = run(session, case.tokens, case.calls(session))
            reference = trace_mlx(model, case.tokens, rows)
        mx.clear_cache()
        if case.routing is not None:
            # Theirs are the scores of the case, by which MLX's order is made in another way.
            measured = dataclasses.replace(
                measured,
                layers=[
                    dataclasses.replace(mine, scores=other.scores)
                    for mine, other in zip(measured.layers, reference.layers, strict=True)
                ],
            )
        judgement = judge(case, measured, reference, rows, arithmetic)
        if judgement.judged_rows or not judgement.routing_explained:
            break
    return judgement
