"""The sequences that a package is proved on, and the comparison of each with MLX in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.compare.measures import (
    LayerComparison,
    TensorError,
    compare_layers,
    kl_divergence,
)
from mobilemoe_mlx.compare.values import Trace, trace_mlx
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.verify.session import Session, run
from mobilemoe_mlx.verify.tolerance import FLOAT32_SCORE, Limit, limit

CASES = ("short", "long", "full")

_ATTEMPTS = 3  # of sequences whose first logits a near tie reaches
_DECODED = 4  # tokens after the prompt that go through decode; fewer in the smallest contexts


class Case(NamedTuple):
    """A sequence: its first `prompt` tokens are fed in blocks, the others one by one."""

    name: str
    tokens: list[int]
    prompt: int


@dataclass(frozen=True)
class CaseReport:
    """One case in one arithmetic."""

    case: str
    arithmetic: str
    tokens: int
    prompt: int
    layers: tuple[LayerComparison, ...]
    rows: int  # tokens whose logits were compared
    logits: TensorError  # of all of them
    judged: float  # the value of the limit's measure, over the rows that are judged
    judged_rows: int
    top1_agreement: float
    kl_mean: float  # KL(MLX || package), nats a token
    kl_max: float
    routing_explained: bool  # differences in routing are near ties, and do no more than those do
    limit: Limit

    @property
    def passed(self) -> bool:
        """Whether the logits are within the limit (NaN is not) and the routing is explained."""
        return self.judged <= self.limit.value and self.routing_explained


def make_case(name: str, session: Session, seed: int = 0) -> Case:
    """A prompt shorter than a block, one longer, or one that fills the cache to its end.

    Tokens are random: every expert and as much of the embedding as possible is to be used.
    """
    block, context = session.block, session.context
    prompt = {
        "short": block * 2 // 5,
        "long": 2 * block + block // 3,
        "full": context,
    }[name]
    decoded = min(_DECODED, context - 2)
    prompt = max(2, min(prompt, context - decoded))  # two are a block, one is decoded
    rng = np.random.default_rng(seed)
    tokens = rng.integers(session.args.vocab_size, size=prompt + decoded)
    return Case(name, tokens.tolist(), prompt)


def run_case(
    name: str, session: Session, model: Model, arithmetic: str, seed: int = 0
) -> CaseReport:
    """Run the case `name` in the package's `session` and in `model`, and compare.

    Where a near tie before the first logits leaves none to judge, which a right package gives for
    one in thousands of sequences, the tokens of the next seeds are taken.
    """
    for attempt in range(_ATTEMPTS):
        case = make_case(name, session, seed + attempt)
        measured, rows = run(session, case.tokens, case.prompt)
        reference = trace_mlx(model, case.tokens, rows)
        mx.clear_cache()
        report = compare_case(case, measured, reference, rows, arithmetic)
        if report.judged_rows or not report.routing_explained:
            break
    return report


def compare_case(
    case: Case, measured: Trace, reference: Trace, rows: Sequence[int], arithmetic: str
) -> CaseReport:
    """Compare two traces of `case`, whose logits are those of the tokens `rows`.

    In float32 the tokens before the first one routed differently are judged: attention is causal,
    so nothing later can reach them. That first one must be a near tie, and all tokens together must
    keep to the limit of float16, so that no mistake hides behind it. In float16 near ties fall
    differently everywhere, and the mean over all tokens is judged.
    """
    layers, same_routing = compare_layers(measured.layers, reference.layers)
    limit_ = limit(arithmetic, len(layers))
    everywhere = TensorError.between(measured.logits, reference.logits)
    clean = len(same_routing) if same_routing.all() else int(np.argmin(same_routing))
    judged = np.ones(len(rows), bool) if limit_.measure == "mean" else np.array(rows) < clean
    kl = [kl_divergence(r, m) for r, m in zip(reference.logits, measured.logits, strict=True)]
    same_top1 = measured.logits.argmax(-1) == reference.logits.argmax(-1)
    value = float("nan")
    if judged.any():
        error = TensorError.between(measured.logits[judged], reference.logits[judged])
        value = getattr(error, limit_.measure)
    return CaseReport(
        case=case.name,
        arithmetic=arithmetic,
        tokens=len(case.tokens),
        prompt=case.prompt,
        layers=layers,
        rows=len(rows),
        logits=everywhere,
        judged=value,
        judged_rows=int(judged.sum()),
        top1_agreement=float(same_top1.mean()),
        kl_mean=float(np.mean(kl)),
        kl_max=float(np.max(kl)),
        routing_explained=(
            all(_explained(layer) for layer in layers)
            if arithmetic == "declared"
            else _is_near_tie(measured, reference, clean)
            and everywhere.mean <= limit("declared", len(layers)).value
        ),
        limit=limit_,
    )


def _explained(layer: LayerComparison) -> bool:
    """Whether the scores' own error can have swapped what was swapped.

    A selection by another rule than the scores' order would differ by more.
    """
    if layer.flip_margin is None:
        return True
    return layer.score_error is not None and layer.flip_margin <= 2 * layer.score_error


def _is_near_tie(measured: Trace, reference: Trace, token: int) -> bool:
    """Whether `token`, the first one routed differently, had a near tie where it was so at first.

    What it is computed from agrees, so its scores do to float32's rounding.
    """
    for mine, theirs in zip(measured.layers, reference.layers, strict=True):
        if token >= len(theirs.experts):  # there is none
            return True
        slots = theirs.experts.shape[-1]
        if set(mine.experts[token]) != set(theirs.experts[token]):
            ranked = -np.sort(-theirs.scores[token])
            return bool(ranked[slots - 1] - ranked[slots] <= 2 * FLOAT32_SCORE)
    return True
