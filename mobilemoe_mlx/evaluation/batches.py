"""How requests are divided into batches: by length, beside those that begin alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Texts belong to one tree if they share at least this many tokens, and this part of the shorter.
_ALIKE, _ALIKE_PART = 8, 0.25

# Tokens of a tree of several texts at most: its attention is computed in a square.
_TREE = 512

# Tokens at the beginning of many texts (the examples of a few-shot task, say) that are computed
# once, if so many are shared.
_SHARED_FROM = 32

# Tokens that must be spared so that keeping such a beginning pays: its texts make batches of their
# own, and small batches take longer for each token.
_KEEPING = 512


class Batch(NamedTuple):
    """Requests that are computed together."""

    indices: tuple[int, ...]
    shared: int  # tokens that all of them begin with, computed once for this and later batches


class Span(NamedTuple):
    """Neighbours in the sorted order of all texts: from `start` to before `end`."""

    start: int
    end: int
    tokens: int  # of the tree that they make, what they share being counted once


def divide(texts: Sequence[np.ndarray], contexts: Sequence[int], most: int) -> list[Batch]:
    """Batches of about `most` tokens, long texts first; each index of `texts` is in one of them.

    `texts`: int [tokens], what is computed of each. `contexts`: how many tokens of it are context;
    what a batch shares is less than that, so that what follows the context is always computed.
    """
    order = sorted_texts(texts)
    lengths = [len(texts[i]) for i in order]
    common = common_lengths([texts[i] for i in order])
    free = [min(contexts[i], len(texts[i])) - 1 for i in order]
    pools: list[tuple[int, list[Span]]] = []
    loose: list[Span] = []
    for start, end, shared in _families(common, free):
        alone = tree_spans(lengths[start:end], common[start : end - 1])
        after = tree_spans(
            [length - shared for length in lengths[start:end]],
            [c - shared for c in common[start : end - 1]],
        )
        spared = _tokens(alone) - _tokens(after) - shared
        is_worth_it = shared and spared > _KEEPING
        spans = [
            Span(span.start + start, span.end + start, span.tokens)
            for span in (after if is_worth_it else alone)
        ]
        if is_worth_it:
            pools.append((shared, spans))
        else:
            loose += spans
    pools.append((0, loose))
    batches = []
    for shared, spans in pools:
        for lot in _lots(sorted(spans, key=lambda span: -span.tokens), most):
            batches.append(
                Batch(tuple(order[k] for s in lot for k in range(s.start, s.end)), shared)
            )
    return batches


def sorted_texts(texts: Sequence[np.ndarray]) -> list[int]:
    """The indices of `texts` in lexicographic order."""
    keys = [text.astype(">u4").tobytes() for text in texts]  # bytes that sort as the numbers do
    return sorted(range(len(keys)), key=keys.__getitem__)


def common_lengths(texts: Sequence[np.ndarray]) -> list[int]:
    """How many tokens each text shares with the next at its beginning: one number fewer."""
    found = []
    for one, other in pairwise(texts):
        length = min(len(one), len(other))
        differ = one[:length] != other[:length]
        at = int(differ.argmax()) if length else 0
        found.append(at if length and differ[at] else length)
    return found


def tree_spans(lengths: Sequence[int], common: Sequence[int]) -> list[Span]:
    """Which of sorted texts make a tree together, given their `lengths` and `common_lengths`."""
    spans: list[Span] = []
    for k, length in enumerate(lengths):
        if k:
            last, shared = spans[-1], common[k - 1]
            alike = shared >= max(_ALIKE, _ALIKE_PART * min(length, lengths[k - 1]))
            tokens = last.tokens + length - shared
            if shared == length or (alike and tokens <= max(_TREE, lengths[last.start])):
                spans[-1] = Span(last.start, k + 1, tokens)
                continue
        spans.append(Span(k, k + 1, length))
    return spans


def _families(common: Sequence[int], free: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(start, end, shared tokens) of runs of sorted texts that begin alike, 0 for the others.

    A run ends where its texts would share less than half of what they do.
    """
    start = 0
    while start < len(free):
        shared, end, is_one_text = free[start], start + 1, True
        while end < len(free):
            now = min(shared, common[end - 1], free[end])
            if now < _SHARED_FROM or (not is_one_text and 2 * now < shared):
                break
            is_one_text = is_one_text and now == shared
            shared, end = now, end + 1
        yield start, end, shared if end > start + 1 else 0
        start = end


def _tokens(spans: Sequence[Span]) -> int:
    return sum(span.tokens for span in spans)


def _lots(spans: Sequence[Span], most: int) -> Iterator[list[Span]]:
    lot: list[Span] = []
    tokens = 0
    for span in spans:
        if lot and tokens + span.tokens > most:
            yield lot
            lot, tokens = [], 0
        lot.append(span)
        tokens += span.tokens
    if lot:
        yield lot
