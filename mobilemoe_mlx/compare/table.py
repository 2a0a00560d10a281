"""A comparison as text: a line for each layer, the logits, the verdict; what the columns mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilemoe_mlx.numerics.measures import TensorError

if TYPE_CHECKING:
    from mobilemoe_mlx.compare.comparison import Comparison

_LEGEND = """\
layer        the residual stream after it, all tokens; logits: after the last layer
max error    max |MLX - PyTorch| / max |PyTorch|
mean error   mean |MLX - PyTorch| / root mean square of PyTorch
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
    lines = [
        f"{c.checkpoint}: MLX {c.mlx_dtype} against PyTorch {c.torch_dtype}, {c.tokens} tokens",
        "",
        f"{'layer':>6} {'max error':>10} {'mean error':>10} {'cosine':>11} {'same experts':>12} "
        f"{'rerouted':>8} {'new':>6} {'margin':>8} {'score error':>11}",
    ]
    for row in c.layers:
        lines.append(
            f"{row.layer:>6} {_errors(row.hidden)} {row.selection_agreement:>12.3%} "
            f"{row.tokens_differing:>8} {row.first_flips:>6} "
            f"{_small(row.flip_margin):>8} {_small(row.score_error):>11}"
        )
    lines.append(f"{'logits':>6} {_errors(c.logits)}")
    if c.logits_same_routing is not None and c.tokens_same_routing < c.tokens:
        lines.append(
            f"{'':>6} {_errors(c.logits_same_routing)}  "
            f"({c.tokens_same_routing} tokens routed alike in every layer)"
        )
    lines += [
        "",
        f"most likely next token the same for {c.top1_agreement:.3%} of the tokens; "
        f"KL mean {c.kl_mean:.2e}, max {c.kl_max:.2e} nats a token",
    ]
    lines += [f"NOT FINITE: {what}" for what in c.not_finite]
    verdict = "within" if c.judged <= c.tolerance.value else "BEYOND"
    lines += [
        f"logits: {c.tolerance.measure} error {c.judged:.2e}, "
        f"{verdict} the tolerance {c.tolerance.value:g}",
        "",
        _LEGEND,
    ]
    return "\n".join(lines)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _errors(error: TensorError) -> str:
    return f"{error.max:>10.2e} {error.mean:>10.2e} {error.cosine:>11.8f}"
