"""The comparisons of gradients and of training steps as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilemoe_mlx import text_table

if TYPE_CHECKING:
    from mobilemoe_mlx.compare.backward import GradientComparison
    from mobilemoe_mlx.compare.steps import StepsComparison

_WORST = 8  # parameters that are named

_GRADIENT_LEGEND = """\
max error   max |MLX - PyTorch| / max |PyTorch| of a parameter's gradient: the layer's largest
mean error  mean |MLX - PyTorch| / root mean square of PyTorch: the layer's largest
whole       of all gradients as one vector: ||MLX - PyTorch|| / ||PyTorch||"""

_BFLOAT16 = """\
Strong weights and near ties in the routing can take bfloat16's rounding alone that far: whether
there is a mistake shows in float32, without --dtype."""

_STEPS_LEGEND = """\
loss         mean cross-entropy of the step's batch, before the step
distance     ||w(MLX) - w(PyTorch)|| after the step, over the way that PyTorch has gone
same experts share of the chosen experts that both chose
margin       of the first token that goes elsewhere: its last chosen score less the next one"""


def gradients_as_text(comparison: GradientComparison) -> str:
    """Layer by layer, then the worst parameters."""
    c = comparison
    how = (" through INT4" if c.quantize else "") + _limit(c)
    rows = [["layer", "gradients", "max error", "mean error", "worst"]]
    for row in c.layers():
        layer = "other" if row.layer is None else str(row.layer)
        name = row.name.removeprefix(f"model.layers.{row.layer}.")
        rows.append([layer, str(row.parameters), f"{row.max:.2e}", f"{row.mean:.2e}", name])
    worst = [["max error", "mean error", "cosine", "norm", "parameter"]]
    for parameter in c.parameters[:_WORST]:
        e = parameter.error
        worst.append(
            [
                f"{e.max:.2e}",
                f"{e.mean:.2e}",
                f"{e.cosine:.8f}",
                f"{parameter.norm:.2e}",
                parameter.name,
            ]
        )
    return "\n".join(
        [
            f"{c.checkpoint}: gradients{how}, MLX {c.mlx_dtype} against PyTorch {c.torch_dtype}, "
            f"{c.tokens} tokens",
            f"loss {c.mlx_loss:.6f} (MLX), {c.torch_loss:.6f} (PyTorch)",
            "",
            text_table.columns(rows),
            "",
            "the worst:",
            text_table.columns(worst),
            "",
            f"whole gradient {c.whole:.2e}; "
            + _verdict(c.tolerance.measure, c.judged, c.tolerance.value),
            *(
                [_BFLOAT16]
                if c.tolerance.measure == "whole" and c.judged > c.tolerance.value
                else []
            ),
            "",
            _GRADIENT_LEGEND,
        ]
    )


def steps_as_text(comparison: StepsComparison) -> str:
    """A line a step, then where the two part."""
    c = comparison
    rows = [
        [
            "step",
            "loss, MLX",
            "loss, PyTorch",
            "norm, MLX",
            "norm, PyTorch",
            "distance",
            "same experts",
            "margin",
        ]
    ]
    for s in c.steps:
        flip = s.first_flip
        rows.append(
            [
                str(s.step),
                f"{s.mlx_loss:.6f}",
                f"{s.torch_loss:.6f}",
                f"{s.mlx_grad_norm:.5f}",
                f"{s.torch_grad_norm:.5f}",
                f"{s.weight_distance:.1e}",
                f"{s.same_experts:.3%}",
                "-" if flip is None else f"{flip.margin:.1e}",
            ]
        )
    how = ("QAT" if c.quantize else "training") + _limit(c)
    parting = c.parting
    if parting is None or parting.first_flip is None:
        where = "Both chose the same experts throughout."
    else:
        flip = parting.first_flip
        where = (
            f"They part in step {parting.step}: layer {flip.layer} sends token {flip.token} of row "
            f"{flip.row} to another expert, at a margin of {flip.margin:.1e}."
        )
    return "\n".join(
        [
            f"{c.checkpoint}: {how}, in float32, {c.rows} x {c.context} tokens a step, "
            f"peak learning rate {c.peak_lr:g}",
            "",
            text_table.columns(rows),
            "",
            where,
            f"losses until then: {_verdict('relative', c.judged, c.tolerance)}",
            "",
            _STEPS_LEGEND,
        ]
    )


def _limit(c: GradientComparison | StepsComparison) -> str:
    if c.capacity_factor is None:
        return ""
    return f", capacity factor {c.capacity_factor:g} ({c.dropped:.1%} dropped)"


def _verdict(measure: str, judged: float, limit: float) -> str:
    within = "within" if judged <= limit else "BEYOND"
    return f"{measure} error {judged:.2e}, {within} the tolerance {limit:g}"
