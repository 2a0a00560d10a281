"""A batch's texts as trees of tokens: what several texts begin with is there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mobilemoe_mlx.evaluation.batches import common_lengths, sorted_texts, tree_spans


@dataclass(frozen=True)
class TokenTrees:
    """Nodes in depth-first order: a node's descendants follow it, up to its end."""

    tokens: np.ndarray  # int32 [nodes]
    positions: np.ndarray  # int32 [nodes], in the text, the shared beginning included
    ends: np.ndarray  # int32 [nodes]: the node after the last descendant
    trees: tuple[tuple[int, int], ...]  # (first node, node after the last) of each tree
    paths: tuple[np.ndarray, ...]  # for each text, in the given order: its nodes, int32 [tokens]


def token_trees(texts: Sequence[np.ndarray], shared: int = 0) -> TokenTrees:
    """Trees of `texts`, int [tokens] each, without the `shared` tokens that all begin with.

    Each text is longer than `shared`. Texts that have little in common make trees of their own.
    """
    own = [text[shared:] for text in texts]
    order = sorted_texts(own)
    common = common_lengths([own[i] for i in order])
    roots = {span.start for span in tree_spans([len(own[i]) for i in order], common)}
    path = np.empty(max(map(len, own)), np.int32)
    ends = np.empty(sum(map(len, own)), np.int32)
    depth = count = 0  # of the path to the last text's end; of nodes
    parts, starts = [], []
    paths: list[np.ndarray] = [path] * len(own)
    for k, index in enumerate(order):
        text = own[index]
        kept = 0 if k in roots else common[k - 1]
        if k in roots:
            starts.append(count)
        ends[path[kept:depth]] = count
        depth = len(text)
        path[kept:depth] = np.arange(count, count + depth - kept)
        count += depth - kept
        parts.append((text[kept:], np.arange(shared + kept, shared + depth)))
        paths[index] = path[:depth].copy()
    ends[path[:depth]] = count
    tokens, positions = (np.concatenate(part).astype(np.int32) for part in zip(*parts, strict=True))
    trees = tuple(pairwise([*starts, count]))
    return TokenTrees(tokens, positions, ends[:count], trees, tuple(paths))
