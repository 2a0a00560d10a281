"""Splits records off to be held out: the same ones every time, duplicates on the same side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def heldout_digests(
    digests: Sequence[bytes], lengths: np.ndarray, fraction: float, most_tokens: int, seed: int
) -> set[bytes]:
    """The contents to hold out: `fraction` of the records, at least one, at most `most_tokens`.

    `digests` and `lengths` (tokens) are of the records. A content is chosen by a hash of it and
    `seed`, so all records of it are, wherever they stand. Empty where `fraction` is 0 or all
    records have one content: something must be left to train on.
    """
    tokens: dict[bytes, int] = {}
    times: dict[bytes, int] = {}
    for digest, length in zip(digests, lengths.tolist(), strict=True):
        tokens[digest] = tokens.get(digest, 0) + length
        times[digest] = times.get(digest, 0) + 1
    if fraction <= 0:
        return set()
    wanted = max(1, round(fraction * len(digests)))
    chosen: set[bytes] = set()
    records = total = 0
    for digest in sorted(tokens, key=lambda d: hashlib.sha256(b"%d " % seed + d).digest()):
        if records >= wanted or len(chosen) == len(tokens) - 1:
            break
        if chosen and total + tokens[digest] > most_tokens:
            break
        chosen.add(digest)
        records += times[digest]
        total += tokens[digest]
    return chosen
