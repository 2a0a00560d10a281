"""Whether what an export computed for a case is what MLX computes in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.numerics.measures import (
    LayerComparison,
    TensorError,
    all_not_finite,
    compare_layers,
    compare_predictions,
)
from mobilemoe_mlx.numerics.tolerance import FLOAT32_LIMIT, FLOAT32_SCORE, Arithmetic, Limit, limit
from mobilemoe_mlx.numerics.values import Trace
from mobilemoe_mlx.verify.cases import Case


@dataclass(frozen=True)
class CaseJudgement:
    """One case in one arithmetic."""

    case: str
    arithmetic: Arithmetic
    tokens: int
    decoded: int  # of them one by one, all others in blocks; chats mix both
    layers: tuple[LayerComparison, ...]
    rows: int  # tokens whose logits were compared
    logits: TensorError  # of all of them
    judged: float  # the value of the limit's measure, over the rows that are judged
    judged_rows: int
    top1_agreement: float
    kl_mean: float  # KL(MLX || export), nats a token
    kl_max: float
    not_finite: tuple[str, ...]  # the first values of either that are not, by whose they are
    layers_within: bool  # in float32: residual stream and scores of every layer agree
    routing_explained: bool  # differences in routing are near ties, and do no more than those do
    limit: Limit

    @property
    def passed(self) -> bool:
        """Whether logits and layers are within limits (NaN is not) and the routing is explained."""
        within = self.judged <= self.limit.value and self.layers_within
        return within and self.routing_explained and not self.not_finite


class _Findings(NamedTuple):
    """What one of the two judges found; the fields are those of `CaseJudgement`."""

    judged: float
    judged_rows: int
    layers_within: bool
    routing_explained: bool


def judge(
    case: Case, measured: Trace, reference: Trace, rows: Sequence[int], arithmetic: Arithmetic
) -> CaseJudgement:
    """Judge two traces of `case`, whose logits are those of the tokens `rows`."""
    layers, same_routing = compare_layers(measured.layers, reference.layers, len(case.tokens))
    judge_one = _judge_float32 if arithmetic == "float32" else _judge_declared
    findings = judge_one(measured, reference, np.array(rows), layers, same_routing)
    return CaseJudgement(
        case=case.name,
        arithmetic=arithmetic,
        tokens=len(case.tokens),
        decoded=case.decoded,
        layers=layers,
        rows=len(rows),
        logits=TensorError.between(measured.logits, reference.logits),
        limit=limit(arithmetic, len(layers)),
        not_finite=all_not_finite({"the export": measured, "MLX": reference}),
        **findings._asdict(),
        **compare_predictions(measured.logits, reference.logits)._asdict(),
    )


def _judge_float32(
    measured: Trace,
    reference: Trace,
    rows: np.ndarray,
    layers: Sequence[LayerComparison],
    same_routing: np.ndarray,
) -> _Findings:
    """Judge the tokens before the first one routed differently, in every layer.

    Attention is causal, so nothing later can reach them. That first one must be a near tie, and the
    tokens routed alike must keep to the limit of float16, so that no mistake hides behind it.
    """
    clean = len(same_routing) if same_routing.all() else int(np.argmin(same_routing))
    judged = rows < clean
    alike = _error_of_rows_alike(measured, reference, same_routing[rows])
    return _Findings(
        judged=_error(measured, reference, judged).max if judged.any() else float("nan"),
        judged_rows=int(judged.sum()),
        layers_within=_layers_within(measured, reference, clean),
        routing_explained=(
            _is_near_tie(measured, reference, clean)
            and alike.mean <= limit("declared", len(layers)).value
        ),
    )


def _judge_declared(
    measured: Trace,
    reference: Trace,
    rows: np.ndarray,
    layers: Sequence[LayerComparison],
    same_routing: np.ndarray,
) -> _Findings:
    """Judge the mean over the tokens routed alike: in float16 near ties fall differently anywhere.

    Every difference in routing must be one that the scores' own error explains.
    """
    return _Findings(
        judged=_error_of_rows_alike(measured, reference, same_routing[rows]).mean,
        judged_rows=len(rows),
        layers_within=True,
        routing_explained=all(_explained(layer) for layer in layers),
    )


def _error_of_rows_alike(measured: Trace, reference: Trace, alike: np.ndarray) -> TensorError:
    """The error over the rows of tokens routed alike, or over all where none is."""
    return _error(measured, reference, alike if alike.any() else np.ones(len(alike), bool))


def _error(measured: Trace, reference: Trace, rows: np.ndarray) -> TensorError:
    return TensorError.between(measured.logits[rows], reference.logits[rows])


def _layers_within(measured: Trace, reference: Trace, clean: int) -> bool:
    """Whether the first `clean` tokens agree in every layer, not only where logits show it."""
    if clean == 0:
        return True
    return all(
        TensorError.between(mine.hidden[:clean], theirs.hidden[:clean]).max <= FLOAT32_LIMIT
        and np.abs(mine.scores[:clean] - theirs.scores[:clean]).max() <= FLOAT32_LIMIT
        for mine, theirs in zip(measured.layers, reference.layers, strict=True)
    )


def _explained(layer: LayerComparison) -> bool:
    """Whether the error of the scores explains every token that was first routed differently here.

    A selection by another rule than the scores' order would differ by more.
    """
    if layer.flip_margin is None:
        return True
    return layer.score_error is not None and layer.flip_margin <= 2 * layer.score_error


def _is_near_tie(measured: Trace, reference: Trace, token: int) -> bool:
    """Whether `token` has a near tie in the first layer that routes it differently, if one does.

    All that this layer computes from agrees, so its scores agree to float32's rounding.
    """
    for mine, theirs in zip(measured.layers, reference.layers, strict=True):
        if token >= len(theirs.experts):  # there is none
            return True
        slots = theirs.experts.shape[-1]
        if set(mine.experts[token]) != set(theirs.experts[token]):
            ranked = -np.sort(-theirs.scores[token])
            return bool(ranked[slots - 1] - ranked[slots] <= 2 * FLOAT32_SCORE)
    return True
