"""Which logits a batch of scoring requests needs, and what the answers are, given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.evaluation.scorer import LogLikelihood, ScoringRequest
from mobilemoe_mlx.evaluation.token_trees import TokenTrees, token_trees


class Wanted(NamedTuple):
    """A batch's trees and, of each token of each continuation, where its logits are."""

    trees: TokenTrees
    nodes: np.ndarray  # int [rows], ascending: the nodes whose logits are needed
    rows: np.ndarray  # int [targets]: the row of `nodes` that predicts each target
    targets: np.ndarray  # int [targets]: the continuations' tokens, request by request
    lengths: np.ndarray  # int [requests]: tokens of each continuation

    def answers(self, values: np.ndarray, is_best: np.ndarray) -> list[LogLikelihood]:
        """From float [targets], each target's log-probability, and bool [targets], whether it is
        the likeliest token."""
        starts = np.cumsum(self.lengths) - self.lengths
        sums = np.add.reduceat(values.astype(np.float64), starts)
        greedy = np.logical_and.reduceat(is_best, starts)
        return [LogLikelihood(float(s), bool(g)) for s, g in zip(sums, greedy, strict=True)]


def wanted(requests: Sequence[ScoringRequest], shared: int) -> Wanted:
    """What `requests` need, of which all begin with `shared` tokens of context."""
    texts = [np.array(request.context + request.continuation[:-1]) for request in requests]
    trees = token_trees(texts, shared)
    predicting = [
        path[len(request.context) - 1 - shared :]
        for path, request in zip(trees.paths, requests, strict=True)
    ]
    nodes, rows = np.unique(np.concatenate(predicting), return_inverse=True)
    targets = np.concatenate([np.array(request.continuation) for request in requests])
    lengths = np.array([len(request.continuation) for request in requests])
    return Wanted(trees, nodes, rows, targets, lengths)
