"""How far one program's values are from another's: every measure is defined in docs/numerics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.numerics.values import LayerValues, Trace


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


@dataclass(frozen=True)
class LayerComparison:
    """One decoder layer: the residual stream after it, and its routing."""

    layer: int
    hidden: TensorError
    selection_agreement: float  # share of selected experts in common, as sets
    tokens_differing: int  # tokens whose sets differ
    # Over the tokens routed alike in every earlier layer, where a difference is not a consequence:
    first_flips: int  # those whose sets differ here
    flip_margin: float | None  # their largest reference gap from the last chosen score to the next
    score_error: float | None  # max |biased score difference|, absolute; None without such tokens


def compare_layers(
    measured: Sequence[LayerValues], reference: Sequence[LayerValues]
) -> tuple[tuple[LayerComparison, ...], np.ndarray]:
    """Each layer's comparison, and bool [tokens]: which are routed alike in every layer."""
    same_routing = np.ones(len(reference[0].hidden), bool)  # in every layer so far
    layers = []
    for index, pair in enumerate(zip(measured, reference, strict=True)):
        layer, differing = _compare_layer(index, *pair, same_routing)
        layers.append(layer)
        same_routing &= ~differing
    return tuple(layers), same_routing


def _compare_layer(
    index: int, measured: LayerValues, reference: LayerValues, same_so_far: np.ndarray
) -> tuple[LayerComparison, np.ndarray]:
    """The layer's comparison, and bool [tokens]: whose selections differ."""
    slots = reference.experts.shape[-1]
    common = (measured.experts[:, :, None] == reference.experts[:, None, :]).sum(axis=(1, 2))
    differing = common < slots
    flips = differing & same_so_far
    ranked = -np.sort(-reference.scores[flips], axis=-1)
    score_error = np.abs(measured.scores - reference.scores)[same_so_far]
    comparison = LayerComparison(
        layer=index,
        hidden=TensorError.between(measured.hidden, reference.hidden),
        selection_agreement=float(common.mean() / slots) if slots else 1.0,  # of a dense layer
        tokens_differing=int(differing.sum()),
        first_flips=int(flips.sum()),
        flip_margin=(
            float((ranked[:, slots - 1] - ranked[:, slots]).max()) if flips.any() else None
        ),
        score_error=float(score_error.max()) if score_error.size else None,
    )
    return comparison, differing


def all_not_finite(traces: Mapping[str, Trace]) -> tuple[str, ...]:
    """Of each trace, by the name of what computed it: the first values that are not all finite.

    A model computes layer by layer, so that is where the damage begins.
    """
    return tuple(
        f"{what} of {name}"
        for name, trace in traces.items()
        if (what := _first_not_finite(trace)) is not None
    )


def _first_not_finite(trace: Trace) -> str | None:
    for index, layer in enumerate(trace.layers):
        for what, values in (("hidden states", layer.hidden), ("router scores", layer.scores)):
            if not np.isfinite(values).all():
                return f"layer {index}'s {what}"
    return None if np.isfinite(trace.logits).all() else "the logits"


class PredictionComparison(NamedTuple):
    """The next tokens that two programs predict, over all rows of their logits."""

    top1_agreement: float  # share of rows whose most likely token is the same
    kl_mean: float  # KL(reference || measured), nats a token
    kl_max: float


def compare_predictions(measured: np.ndarray, reference: np.ndarray) -> PredictionComparison:
    """Compare two arrays of logits [rows, vocabulary] as distributions of the next token."""
    kl = [kl_divergence(r, m) for r, m in zip(reference, measured, strict=True)]
    same_top1 = measured.argmax(-1) == reference.argmax(-1)
    return PredictionComparison(float(same_top1.mean()), float(np.mean(kl)), float(np.max(kl)))


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
