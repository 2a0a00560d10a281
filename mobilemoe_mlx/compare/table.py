"""A comparison as text: a line for each layer, the logits, the verdict; what the columns mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilemoe_mlx.numerics.measures import LayerComparison, TensorError, value_of

if TYPE_CHECKING:
    from mobilemoe_mlx.compare.comparison import Comparison
    from mobilemoe_mlx.compare.greedy import GreedyAgreement

_LEGEND = """\
A, B         what is compared, and what with, as the first line names them
layer        the residual stream after it, all tokens; logits: after the last layer
max error    max |A - B| / max |B|
mean error   mean |A - B| / root mean square of B
cosine       of the two tensors
same experts share of the selected experts that both selected
rerouted     tokens whose selected experts differ (0: all tokens go to the same experts)
new          those of them that no earlier layer had rerouted; the rest may be a consequence
margin       of the new ones, the largest lead of the last selected score over the next: a near
             tie when it is below twice the score error
score error  largest difference of a router score, over tokens not rerouted before"""


def as_text(comparison: Comparison) -> str:
    """The whole report for a terminal."""
    c = comparison
    lines = [c.title, *(f"not compared: {what}" for what in c.not_compared), "", _header()]
    lines += [_row(layer) for layer in c.layers if _is_shown(layer)]
    lines.append(f"{'logits':>6} {_errors(c.logits)}")
    if c.logits_same_routing is not None and c.tokens_same_routing != c.tokens:
        lines.append(
            f"{'':>6} {_errors(c.logits_same_routing)}  "
            f"({c.tokens_same_routing} tokens routed alike in every layer)"
        )
    lines += [
        "",
        f"most likely next token the same for {c.top1_agreement:.3%} of the tokens; of the five "
        f"most likely {c.top5_overlap:.3%} in common",
        f"KL(B || A) mean {c.kl_mean:.2e}, max {c.kl_max:.2e} nats a token (token "
        f"{c.kl_max_token}); KL(A || B) mean {c.kl_reverse_mean:.2e}, max {c.kl_reverse_max:.2e}",
    ]
    if c.greedy is not None:
        lines.append(f"greedy text: {_greedy(c.greedy)}")
    if c.parting is not None:
        lines.append(f"they part in layer {c.parting.layer}: {_parting(c)}")
    lines += [f"NOT FINITE: {what}" for what in c.not_finite]
    return "\n".join([*lines, _verdict(c), "", _LEGEND])


def _header() -> str:
    return (
        f"{'layer':>6} {'max error':>10} {'mean error':>10} {'cosine':>11} {'same experts':>12} "
        f"{'rerouted':>8} {'new':>6} {'margin':>8} {'score error':>11}"
    )


def _is_shown(row: LayerComparison) -> bool:
    return row.hidden is not None or row.selection_agreement is not None


def _row(row: LayerComparison) -> str:
    return (
        f"{row.layer:>6} {_errors(row.hidden)} {_shown(row.selection_agreement, '.3%'):>12} "
        f"{_shown(row.tokens_differing, 'd'):>8} {_shown(row.first_flips, 'd'):>6} "
        f"{_shown(row.flip_margin, '.1e'):>8} {_shown(row.score_error, '.1e'):>11}"
    )


def _errors(error: TensorError | None) -> str:
    def shown(measure: str, form: str) -> str:
        return _shown(value_of(error, measure), form)

    return f"{shown('max', '.2e'):>10} {shown('mean', '.2e'):>10} {shown('cosine', '.8f'):>11}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _greedy(greedy: GreedyAgreement) -> str:
    if (parting := greedy.parting) is None:
        return f"the same {greedy.asked} tokens"
    a = f"{parting.token_a}{_piece(parting.piece_a)}"
    b = f"{parting.token_b}{_piece(parting.piece_b)}"
    return (
        f"the same for {len(greedy.tokens)} of {greedy.asked} tokens; then A takes {a}, "
        f"{parting.lead_a:.1e} nats ahead of {b}, which B takes, {parting.lead_b:.1e} ahead"
    )


def _piece(piece: str | None) -> str:
    return "" if piece is None else f" ({piece!r})"


def _parting(comparison: Comparison) -> str:
    assert comparison.parting is not None
    layer = comparison.layers[comparison.parting.layer]
    if comparison.parting.seen_by == "experts":
        margin = "" if layer.flip_margin is None else f", at margins up to {layer.flip_margin:.1e}"
        return f"{layer.first_flips} of {comparison.tokens} tokens go to other experts{margin}"
    assert layer.hidden is not None
    measure = comparison.rounding.measure
    return (
        f"its residual stream has the {measure} error {getattr(layer.hidden, measure):.1e}, more "
        f"than rounding explains ({comparison.rounding.value:.1e})"
    )


def _verdict(c: Comparison) -> str:
    start = f"logits: {c.tolerance.measure} error {c.judged:.2e}, "
    within = c.judged <= c.tolerance.value
    if c.is_judged:
        return f"{start}{'within' if within else 'BEYOND'} the tolerance {c.tolerance.value:g}"
    return (
        f"{start}{'no more' if within else 'more'} than rounding explains "
        f"({c.tolerance.value:.1e}); two models are judged by --tolerance alone"
    )
