"""The numerics report: how far one model in one engine is from another, by layer and at the logits.

Every measure is defined in docs/numerics.md; `b` is the reference that errors are relative to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mobilemoe_mlx import files
from mobilemoe_mlx.all_or_none import write_together
from mobilemoe_mlx.compare.greedy import GreedyAgreement
from mobilemoe_mlx.compare.side import Side
from mobilemoe_mlx.compare.versions import versions
from mobilemoe_mlx.numerics.json_values import json_values
from mobilemoe_mlx.numerics.measures import (
    LayerComparison,
    TensorError,
    all_not_finite,
    compare_layers,
    kl_by_row,
    top_overlap,
    value_of,
)
from mobilemoe_mlx.numerics.tolerance import Limit
from mobilemoe_mlx.numerics.values import PartialLayer, PartialTrace

_TOP = 5  # most likely tokens whose overlap is told


@dataclass(frozen=True)
class SideName:
    """Which side of a comparison is meant."""

    model: str  # the path
    engine: str
    precision: str
    label: str  # engine and precision for a person

    @classmethod
    def of(cls, side: Side) -> SideName:
        """The names of an opened side."""
        return cls(str(side.folder), side.engine, side.precision, side.label)


@dataclass(frozen=True)
class LayerParting:
    """The first layer where they differ by more than rounding explains, or choose other experts."""

    layer: int
    seen_by: str  # "experts": tokens go elsewhere first here; "hidden": the residual stream differs


@dataclass(frozen=True)
class Comparison:
    """Everything `mobilemoe compare` prints and writes of a forward pass."""

    a: SideName
    b: SideName
    tokens: int
    layers: tuple[LayerComparison, ...]  # empty where the two have different numbers of them
    not_compared: tuple[str, ...]  # sentences: what a side does not show, or has otherwise
    parting: LayerParting | None
    logits: TensorError
    tokens_same_routing: int | None  # tokens routed alike in every layer; None: not shown
    logits_same_routing: TensorError | None  # of those tokens alone
    top1_agreement: float  # share of tokens whose most likely next token is the same
    top5_overlap: float  # share of the five most likely next tokens that both have
    kl_mean: float  # KL(B || A), nats a token
    kl_max: float
    kl_max_token: int  # where that is
    kl_reverse_mean: float  # KL(A || B)
    kl_reverse_max: float
    kl_by_token: tuple[float, ...]  # KL(B || A)
    greedy: GreedyAgreement | None  # None: no token was asked for, or there is no room
    rounding: Limit  # how far the coarser side's rounding alone may take the logits
    tolerance: Limit  # `rounding`, or the number that was asked for
    is_judged: bool  # whether the tolerance decides
    not_finite: tuple[str, ...]  # the first values of either that are not, by whose they are
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether all is finite, and the judged measure of the logits within its limit."""
        within = self.judged <= self.tolerance.value
        return not self.not_finite and (within or not self.is_judged)

    @property
    def judged(self) -> float:
        """The value of the measure that the tolerance is about."""
        return getattr(self.logits, self.tolerance.measure)

    @property
    def title(self) -> str:
        """What is compared with what, in a line."""
        if self.a.model == self.b.model:
            return f"{self.a.model}: {self.a.label} against {self.b.label}, {self.tokens} tokens"
        return (
            f"{self.a.model} ({self.a.label}) against {self.b.model} ({self.b.label}), "
            f"{self.tokens} tokens"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        limits = {name: getattr(self, name)._asdict() for name in ("rounding", "tolerance")}
        content = {**dataclasses.asdict(self), **limits, "passed": self.passed}
        return cast(dict[str, Any], json_values(content))

    def write(self, folder: Path) -> None:
        """Write compare.json and compare.png into `folder`, creating it: both or none."""
        from mobilemoe_mlx.compare.picture import draw  # matplotlib

        record = files.json_text(self.to_dict()).encode()
        write_together(folder, {"compare.json": record, "compare.png": draw(self)})


def compare_traces(
    a: Side,
    b: Side,
    trace_a: PartialTrace,
    trace_b: PartialTrace,
    *,
    greedy: GreedyAgreement | None = None,
    tolerance: float | None = None,
    is_judged: bool = True,
) -> Comparison:
    """Compare what the two sides show of one sequence.

    `tolerance`: replaces the limit of the coarser side.
    """
    rounding = max(a.limit, b.limit, key=lambda limit: limit.value)
    layers_a, layers_b, not_compared = _comparable(a, b, trace_a, trace_b)
    layers, same_routing = compare_layers(layers_a, layers_b, len(trace_b.logits))
    shows_routing = any(layer.selection_agreement is not None for layer in layers)
    kl = kl_by_row(trace_a.logits, trace_b.logits)
    reverse = kl_by_row(trace_b.logits, trace_a.logits)
    same_top1 = trace_a.logits.argmax(-1) == trace_b.logits.argmax(-1)
    return Comparison(
        a=SideName.of(a),
        b=SideName.of(b),
        tokens=len(trace_b.logits),
        layers=layers,
        not_compared=not_compared,
        parting=_first_parting(layers, rounding),
        logits=TensorError.between(trace_a.logits, trace_b.logits),
        tokens_same_routing=int(same_routing.sum()) if shows_routing else None,
        logits_same_routing=(
            TensorError.between(trace_a.logits[same_routing], trace_b.logits[same_routing])
            if shows_routing and same_routing.any()
            else None
        ),
        top1_agreement=float(same_top1.mean()),
        top5_overlap=top_overlap(trace_a.logits, trace_b.logits, _TOP),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        kl_max_token=int(kl.argmax()),
        kl_reverse_mean=float(reverse.mean()),
        kl_reverse_max=float(reverse.max()),
        kl_by_token=tuple(kl.tolist()),
        greedy=greedy,
        rounding=rounding,
        tolerance=rounding if tolerance is None else rounding._replace(value=tolerance),
        is_judged=is_judged,
        not_finite=all_not_finite({f"A, {a.label}": trace_a, f"B, {b.label}": trace_b}),
        versions=versions(*dict.fromkeys((*a.packages, *b.packages))),
    )


def _first_parting(layers: Sequence[LayerComparison], rounding: Limit) -> LayerParting | None:
    for layer in layers:
        if layer.first_flips:
            return LayerParting(layer.layer, "experts")
        error = value_of(layer.hidden, rounding.measure)
        if error is not None and not error <= rounding.value:  # NaN parts too
            return LayerParting(layer.layer, "hidden")
    return None


def _comparable(
    a: Side, b: Side, trace_a: PartialTrace, trace_b: PartialTrace
) -> tuple[Sequence[PartialLayer], Sequence[PartialLayer], tuple[str, ...]]:
    """The layers of both without what cannot be compared, and sentences saying what that is."""
    if len(trace_a.layers) != len(trace_b.layers):
        return (), (), (f"layers: A has {len(trace_a.layers)}, B {len(trace_b.layers)}",)
    why = []
    for name, side, trace in (("A", a, trace_a), ("B", b, trace_b)):
        hidden = {
            "the residual stream": "hidden",
            "the routers' scores": "scores",
            "the chosen experts": "experts",
        }
        if lacks := [t for t, f in hidden.items() if getattr(trace.layers[0], f) is None]:
            why.append(f"{', '.join(lacks)}: not shown by {name}, {side.label}")
    widths = [side.args.hidden_size for side in (a, b)]
    if widths[0] != widths[1]:
        why.append(f"the residual stream: {widths[0]} wide in A, {widths[1]} in B")
    routers = [(side.args.num_local_experts, side.args.num_experts_per_tok) for side in (a, b)]
    layers_a, layers_b = trace_a.layers, trace_b.layers
    if routers[0] != routers[1]:
        told = [f"{chosen} of {experts}" for experts, chosen in routers]
        why.append(f"the routing: a token goes to {told[0]} experts in A, {told[1]} in B")
        layers_a, layers_b = (
            [PartialLayer(layer.hidden, None, None) for layer in layers]
            for layers in (layers_a, layers_b)
        )
    return layers_a, layers_b, tuple(why)
