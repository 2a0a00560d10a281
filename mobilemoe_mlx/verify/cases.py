"""The sequences that a package is proved on, and the comparison of each with MLX in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.measures import (
    LayerComparison,
    TensorError,
    compare_layers,
    kl_divergence,
)
from mobilemoe_mlx.numerics.tolerance import FLOAT32_LIMIT, FLOAT32_SCORE, Limit, limit
from mobilemoe_mlx.numerics.values import Trace, trace_mlx
from mobilemoe_mlx.verify.routing_patterns import PATTERNS, decode_scores, make_scores, routed_by
from mobilemoe_mlx.verify.session import Call, Session, chat_plan, plan, run

CASES = ("short", "long", "full", "chat", "routing")

_ATTEMPTS = 3  # of sequences whose first logits a near tie reaches
_DECODED = 4  # tokens after the prompt that go through decode; fewer in the smallest contexts
_CHAT_BLOCKS = 2  # the most blocks' worth of tokens in a chat


class Case(NamedTuple):
    """A sequence: `tokens`, of which all but the last `decoded` are fed in blocks.

    "chat" mixes both (`session.chat_plan`); `routing`: the scores that it is run with.
    """

    name: str
    tokens: list[int]
    decoded: int
    routing: list[np.ndarray] | None = None

    def calls(self, session: Session) -> Iterator[Call]:
        """How the sequence is fed."""
        total = len(self.tokens)
        if self.name == "chat":
            return chat_plan(total, session.block, session.context)
        return plan(total - self.decoded, total, session.block, session.context)


@dataclass(frozen=True)
class CaseReport:
    """One case in one arithmetic."""

    case: str
    arithmetic: str
    tokens: int
    decoded: int  # of them one by one, all others in blocks; chats mix both
    layers: tuple[LayerComparison, ...]
    rows: int  # tokens whose logits were compared
    logits: TensorError  # of all of them
    judged: float  # the value of the limit's measure, over the rows that are judged
    judged_rows: int
    top1_agreement: float
    kl_mean: float  # KL(MLX || package), nats a token
    kl_max: float
    layers_within: bool  # in float32: residual stream and scores of every layer agree
    routing_explained: bool  # differences in routing are near ties, and do no more than those do
    limit: Limit

    @property
    def passed(self) -> bool:
        """Whether logits and layers are within limits (NaN is not) and the routing is explained."""
        within = self.judged <= self.limit.value and self.layers_within
        return within and self.routing_explained


def make_case(name: str, session: Session, seed: int = 0) -> Case:
    """A prompt shorter than a block, one longer, one that fills the cache, a chat, or all routings.

    Tokens are random: every expert and as much of the embedding as possible is to be used.
    """
    block, context = session.block, session.context
    rng = np.random.default_rng(seed)
    if name == "routing":
        return _routing_case(session, rng)
    if name == "chat":
        total, decoded = min(context, _CHAT_BLOCKS * block), 0
    else:
        prompt = {"short": block * 2 // 5, "long": 2 * block + block // 3, "full": context}[name]
        decoded = min(_DECODED, context - 2)
        # Two are a block, and one at least is decoded.
        total = max(2, min(prompt, context - decoded)) + decoded
    return Case(name, rng.integers(session.args.vocab_size, size=total).tolist(), decoded)


def _routing_case(session: Session, rng: np.random.Generator) -> Case:
    """Scores that random tokens do not have: see `routing_patterns`."""
    args, block = session.args, session.block
    experts, slots = args.num_local_experts, args.num_experts_per_tok
    decoded = min(2 * -(-experts // slots), session.context - block)
    # Each pattern once at least: layers take turns, and in the next block the next one is theirs.
    wanted = -(-len(PATTERNS) // args.num_hidden_layers)
    blocks = min(wanted, (session.context - decoded) // block)
    patterns = [
        np.concatenate(
            [
                make_scores(PATTERNS[(layer + index) % len(PATTERNS)], block, experts, slots, rng)
                for index in range(blocks)
            ]
            + [decode_scores(decoded, experts, slots, rng)]
        )
        for layer in range(args.num_hidden_layers)
    ]
    tokens = rng.integers(args.vocab_size, size=blocks * block + decoded).tolist()
    return Case("routing", tokens, decoded, patterns)


def run_case(
    name: str, session: Session, model: Model, arithmetic: str, seed: int = 0
) -> CaseReport:
    """Run the case `name` in the package's `session` and in `model`, and compare.

    Where a near tie before the first logits leaves none to judge, which a right package gives for
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
        report = compare_case(case, measured, reference, rows, arithmetic)
        if report.judged_rows or not report.routing_explained:
            break
    return report


def compare_case(
    case: Case, measured: Trace, reference: Trace, rows: Sequence[int], arithmetic: str
) -> CaseReport:
    """Compare two traces of `case`, whose logits are those of the tokens `rows`.

    In float32 the tokens before the first one routed differently are judged, in every layer:
    attention is causal, so nothing later can reach them. That first one must be a near tie, and the
    tokens routed alike must keep to the limit of float16, so that no mistake hides behind it. In
    float16 near ties fall differently everywhere, and the mean over the tokens routed alike is
    judged.
    """
    layers, same_routing = compare_layers(measured.layers, reference.layers)
    limit_ = limit(arithmetic, len(layers))
    clean = len(same_routing) if same_routing.all() else int(np.argmin(same_routing))
    alike = same_routing[np.array(rows)]
    everywhere = _error(measured, reference, alike if alike.any() else np.ones(len(rows), bool))
    judged = np.ones(len(rows), bool) if limit_.measure == "mean" else np.array(rows) < clean
    kl = [kl_divergence(r, m) for r, m in zip(reference.logits, measured.logits, strict=True)]
    same_top1 = measured.logits.argmax(-1) == reference.logits.argmax(-1)
    if limit_.measure == "mean":
        value = everywhere.mean
    else:
        value = _error(measured, reference, judged).max if judged.any() else float("nan")
    return CaseReport(
        case=case.name,
        arithmetic=arithmetic,
        tokens=len(case.tokens),
        decoded=case.decoded,
        layers=layers,
        rows=len(rows),
        logits=TensorError.between(measured.logits, reference.logits),
        judged=value,
        judged_rows=int(judged.sum()),
        top1_agreement=float(same_top1.mean()),
        kl_mean=float(np.mean(kl)),
        kl_max=float(np.max(kl)),
        layers_within=arithmetic == "declared" or _layers_within(measured, reference, clean),
        routing_explained=(
            all(_explained(layer) for layer in layers)
            if arithmetic == "declared"
            else _is_near_tie(measured, reference, clean)
            and everywhere.mean <= limit("declared", len(layers)).value
        ),
        limit=limit_,
    )


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
