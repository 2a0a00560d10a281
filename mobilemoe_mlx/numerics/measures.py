"""How far one program's values are from another's: every measure is defined in docs/numerics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.numerics.values import PartialLayer, PartialTrace


@dataclass(frozen=True)
class TensorError:
    """Distance of one tensor from its reference; 0, 0 and 1 when they are equal."""

    max: float  # max |measured - reference| / max |reference|
    mean: float  # mean |measured - reference| / RMS(reference)
    cosine: float  # of the two flattened tensors

    @classmethod
    def between(cls, measured: np.ndarray, reference: np.ndarray) -> TensorError:
        """Two arrays [rows, columns]; a value that is not finite makes every measure NaN.

        Against a reference of zeros every difference is infinite.
        """
        if not (np.isfinite(measured).all() and np.isfinite(reference).all()):
            return cls(math.nan, math.nan, math.nan)
        with np.errstate(over="ignore"):
            difference = np.abs(measured - reference)
        size = float(np.abs(reference).max())
        if size == 0:
            differs = bool(difference.any())
            return cls(math.inf, math.inf, 0.0) if differs else cls(0.0, 0.0, 1.0)
        squares = _dot(reference, reference)
        norms = math.sqrt(squares) * math.sqrt(_dot(measured, measured))
        return cls(
            max=float(difference.max()) / size,
            mean=float(difference.mean(dtype=np.float64)) / math.sqrt(squares / reference.size),
            cosine=_dot(measured, reference) / norms if norms else 0.0,
        )


def value_of(error: TensorError | None, measure: str) -> float | None:
    """One measure of an error, by its name; None without an error."""
    return None if error is None else float(getattr(error, measure))


@dataclass(frozen=True)
class LayerComparison:
    """One decoder layer: the residual stream after it, and its routing.

    None: one of the two programs does not show it, or it has another shape in them.
    """

    layer: int
    hidden: TensorError | None
    selection_agreement: float | None  # share of selected experts in common, as sets
    tokens_differing: int | None  # tokens whose sets differ
    # Over the tokens routed alike in every earlier layer, where a difference is not a consequence:
    first_flips: int | None  # those whose sets differ here
    # Their largest gap from the last chosen score to the next, in the reference (else in the other)
    flip_margin: float | None
    score_error: float | None  # max |biased score difference|, absolute; None without such tokens


def compare_layers(
    measured: Sequence[PartialLayer], reference: Sequence[PartialLayer], tokens: int
) -> tuple[tuple[LayerComparison, ...], np.ndarray]:
    """Each layer's comparison, and bool [tokens]: which are routed alike in every layer shown."""
    same_routing = np.ones(tokens, bool)  # in every layer so far
    layers = []
    for index, pair in enumerate(zip(measured, reference, strict=True)):
        layer, differing = _compare_layer(index, *pair, same_routing)
        layers.append(layer)
        same_routing &= ~differing
    return tuple(layers), same_routing


def _compare_layer(
    index: int, measured: PartialLayer, reference: PartialLayer, same_so_far: np.ndarray
) -> tuple[LayerComparison, np.ndarray]:
    """The layer's comparison, and bool [tokens]: whose selections differ."""
    hidden = _both(measured.hidden, reference.hidden)
    experts = _both(measured.experts, reference.experts)
    scores = _both(measured.scores, reference.scores)
    agreement, margin, error = None, None, None
    differing = flips = np.zeros(len(same_so_far), bool)
    if experts is not None:
        slots = experts[1].shape[-1]
        common = (experts[0][:, :, None] == experts[1][:, None, :]).sum(axis=(1, 2))
        agreement = float(common.mean() / slots) if slots else 1.0  # of a dense layer
        differing = common < slots
        flips = differing & same_so_far
        sorted_by = measured.scores if reference.scores is None else reference.scores
        if sorted_by is not None and flips.any():
            ranked = -np.sort(-sorted_by[flips], axis=-1)
            margin = float((ranked[:, slots - 1] - ranked[:, slots]).max())
    if scores is not None and scores[0][same_so_far].size:
        error = float(np.abs(scores[0] - scores[1])[same_so_far].max())
    comparison = LayerComparison(
        layer=index,
        hidden=None if hidden is None else TensorError.between(*hidden),
        selection_agreement=agreement,
        tokens_differing=None if experts is None else int(differing.sum()),
        first_flips=None if experts is None else int(flips.sum()),
        flip_margin=margin,
        score_error=error,
    )
    return comparison, differing


def _both(
    measured: np.ndarray | None, reference: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The two where both are there and of one shape."""
    if measured is None or reference is None or measured.shape != reference.shape:
        return None
    return measured, reference


def all_not_finite(traces: Mapping[str, PartialTrace]) -> tuple[str, ...]:
    """Of each trace, by the name of what computed it: the first values that are not all finite.

    A model computes layer by layer, so that is where the damage begins.
    """
    return tuple(
        f"{what} of {name}"
        for name, trace in traces.items()
        if (what := _first_not_finite(trace)) is not None
    )


def _first_not_finite(trace: PartialTrace) -> str | None:
    for index, layer in enumerate(trace.layers):
        for what, values in (("hidden states", layer.hidden), ("router scores", layer.scores)):
            if values is not None and not np.isfinite(values).all():
                return f"layer {index}'s {what}"
    return None if np.isfinite(trace.logits).all() else "the logits"


class PredictionComparison(NamedTuple):
    """The next tokens that two programs predict, over all rows of their logits."""

    top1_agreement: float  # share of rows whose most likely token is the same
    kl_mean: float  # KL(reference || measured), nats a token
    kl_max: float


def compare_predictions(measured: np.ndarray, reference: np.ndarray) -> PredictionComparison:
    """Compare two arrays of logits [rows, vocabulary] as distributions of the next token."""
    kl = kl_by_row(measured, reference)
    same_top1 = measured.argmax(-1) == reference.argmax(-1)
    return PredictionComparison(float(same_top1.mean()), float(np.mean(kl)), float(np.max(kl)))


def kl_by_row(measured: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """KL(softmax `reference` || softmax `measured`) of each row, float64 [rows] in nats."""
    return np.array([kl_divergence(r, m) for r, m in zip(reference, measured, strict=True)])


def top_overlap(measured: np.ndarray, reference: np.ndarray, count: int) -> float:
    """The share of each row's `count` largest logits that both have, averaged over rows."""
    count = min(count, reference.shape[-1])
    mine, theirs = (
        np.argpartition(-logits, count - 1, axis=-1)[:, :count] for logits in (measured, reference)
    )
    return float((mine[:, :, None] == theirs[:, None, :]).sum() / theirs.size)


def kl_divergence(reference: np.ndarray, measured: np.ndarray) -> float:
    """KL(softmax `reference` || softmax `measured`) of two rows of logits, in nats."""
    p, q = _log_softmax(reference), _log_softmax(measured)
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of products in float64, where no square of a float32 overflows or vanishes."""
    return float(np.einsum("ti,ti->", x, y, dtype=np.float64))
