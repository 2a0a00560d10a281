"""How long two sides continue a text alike, each by its most likely token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mobilemoe_mlx.compare.side import Run


@dataclass(frozen=True)
class GreedyParting:
    """The first token that the two choose differently."""

    token_a: int
    token_b: int
    # By how many nats of log-probability each side's own choice leads the other's.
    lead_a: float
    lead_b: float
    piece_a: str | None  # as the vocabulary spells it; None: not known
    piece_b: str | None


@dataclass(frozen=True)
class GreedyAgreement:
    """The tokens that both choose, up to the first that differs or to the end."""

    tokens: tuple[int, ...]
    asked: int  # how many were to be chosen
    parting: GreedyParting | None


def choose(run: Run, last: np.ndarray, count: int) -> tuple[list[int], list[np.ndarray]]:
    """Continue by `count` tokens after the logits `last`; -> (tokens, logits of each choice)."""
    tokens, rows = [int(last.argmax())], [last]
    while len(tokens) < count:
        rows.append(run.extend(tokens[-1:])[0])
        tokens.append(int(rows[-1].argmax()))
    return tokens, rows


def follow(run: Run, last: np.ndarray, tokens: Sequence[int], has_cache: bool) -> list[np.ndarray]:
    """The logits by which this side chooses after each of `tokens`, which another side chose.

    With a cache only up to the first that it would not have chosen.
    """
    if not has_cache:
        return [last, *(run.extend(tokens[:-1]) if len(tokens) > 1 else ())]
    rows = [last]
    for token in tokens[:-1]:
        if int(rows[-1].argmax()) != token:
            break
        rows.append(run.extend([token])[0])
    return rows


def compare_choices(
    rows_a: Sequence[np.ndarray],
    rows_b: Sequence[np.ndarray],
    asked: int,
    piece: Callable[[int], str | None],
) -> GreedyAgreement:
    """Compare the logits of each choice, which follow the same tokens as long as those agree.

    `piece`: how the vocabulary spells a token, if that is known.
    """
    tokens: list[int] = []
    for row_a, row_b in zip(rows_a, rows_b, strict=False):
        token_a, token_b = int(row_a.argmax()), int(row_b.argmax())
        if token_a != token_b:
            lead_a = float(row_a[token_a]) - float(row_a[token_b])
            lead_b = float(row_b[token_b]) - float(row_b[token_a])
            parting = GreedyParting(
                token_a, token_b, lead_a, lead_b, piece(token_a), piece(token_b)
            )
            return GreedyAgreement(tuple(tokens), asked, parting)
        tokens.append(token_a)
    return GreedyAgreement(tuple(tokens), asked, None)
