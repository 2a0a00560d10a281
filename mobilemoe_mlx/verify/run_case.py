"""Run one case in a saved export and in MLX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import mlx.core as mx

from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.numerics.values import trace_mlx
from mobilemoe_mlx.verify.calls import Call
from mobilemoe_mlx.verify.cases import Sizes, make_case
from mobilemoe_mlx.verify.hidden_routing import infer_routing
from mobilemoe_mlx.verify.judgement import CaseJudgement, judge
from mobilemoe_mlx.verify.routing_patterns import routed_by
from mobilemoe_mlx.verify.session import Session, run

_ATTEMPTS = 3  # of sequences whose first logits a near tie reaches


def run_case(
    name: str,
    session: Session,
    model: Model,
    arithmetic: Arithmetic,
    seed: int = 0,
    watched: Callable[[Iterable[Call]], Iterable[Call]] = iter,
) -> CaseJudgement:
    """Run the case `name` in the export's `session` and in `model`, and compare.

    `watched` passes the calls on, for whoever counts them.
    Where a near tie before the first logits leaves none to judge, which a right export gives for
    one in thousands of sequences, the tokens of the next seeds are taken.
    """
    sizes = Sizes(session.args, session.block, session.context)
    for attempt in range(_ATTEMPTS):
        case = make_case(name, sizes, seed + attempt)
        with routed_by(case.routing, session, model):
            measured, rows = run(session, case.tokens, watched(case.calls(sizes)))
            reference = trace_mlx(model, case.tokens, rows)
        mx.clear_cache()
        if not session.shows_routing:
            measured = infer_routing(measured, reference)
        if case.routing is not None:
            # The case's scores routed the export, and a bias made from them routed MLX, so a
            # comparison of the two models' own scores would say nothing.
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
