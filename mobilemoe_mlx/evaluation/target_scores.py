"""What logits say of given tokens: their log-probabilities, and whether each is the likeliest."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np

# Logits that numpy takes at once: as many as stay in a CPU's cache between its passes over them.
_AT_ONCE = 1 << 17


class TargetScores(NamedTuple):
    """Of each target. A log-probability that is not finite says that the logits are not."""

    log_probabilities: np.ndarray  # float64 [targets]
    is_best: np.ndarray  # bool [targets]; of equally likely tokens the lowest is the best


def target_scores(
    logits: np.ndarray | mx.array, rows: np.ndarray, targets: np.ndarray
) -> TargetScores:
    """Scores of the tokens `targets` in the `rows` of logits [rows, vocabulary] that predict them.

    Both int [targets]. Logits of MLX stay on its device, unless that is the CPU, where numpy's
    exponentials are several times faster than MLX's.
    """
    if isinstance(logits, mx.array):
        logits = logits.astype(mx.float32)
        if mx.default_device().type != mx.DeviceType.cpu:
            return _on_device(logits, rows, targets)
        logits = np.asarray(logits)
    total = np.empty(len(logits))
    best = np.empty(len(logits), np.int64)
    step = max(1, _AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), step):
        part = logits[start : start + step]
        top = part.max(axis=-1, keepdims=True)
        sums = np.exp(part - top).sum(axis=-1, dtype=np.float64)
        total[start : start + step] = top[:, 0] + np.log(sums)
        best[start : start + step] = part.argmax(axis=-1)
    return TargetScores(logits[rows, targets] - total[rows], best[rows] == targets)


def _on_device(logits: mx.array, rows: np.ndarray, targets: np.ndarray) -> TargetScores:
    where, tokens = mx.array(rows), mx.array(targets)
    chosen = logits[where, tokens] - mx.logsumexp(logits, axis=-1)[where]
    is_best = mx.argmax(logits, axis=-1)[where] == tokens
    mx.eval(chosen, is_best)
    return TargetScores(np.array(chosen, np.float64), np.array(is_best))
