"""The choice of the next token from logits by mlx-lm's rules, whatever the engine.

The same rules in two forms, which choose the same tokens: on MLX's arrays, by mlx-lm's functions,
for a model whose next step is computed meanwhile; and on numpy's, for logits that are there: MLX's
CPU backend takes 34 ms to sort a vocabulary of 128,256, and 2 ms for a greedy choice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.generation_options import GenerationOptions

_PENALISED = 20  # the last tokens, whose scores the repetition penalty divides (mlx-lm's window)


class Sampler:
    """Chooses tokens as `options` say, and sets mlx's random state if they have a seed."""

    def __init__(self, options: GenerationOptions, vocab_size: int) -> None:
        if options.seed is not None:
            mx.random.seed(options.seed)
        self._options = options
        # mlx-lm refuses a top-k that keeps everything.
        self._top_k = options.top_k if options.top_k < vocab_size else 0

    @functools.cached_property
    def _rules(self) -> tuple[Callable[..., mx.array], list[Callable[..., mx.array]]]:
        """mlx-lm's choice, and what it does to the logits before; mlx-lm is slow to import."""
        from mlx_lm.sample_utils import make_logits_processors, make_sampler

        options = self._options
        choose = make_sampler(
            options.temperature, top_p=options.top_p, min_p=options.min_p, top_k=self._top_k
        )
        penalty = options.repetition_penalty if options.repetition_penalty != 1 else None
        return choose, make_logits_processors(
            repetition_penalty=penalty, repetition_context_size=_PENALISED
        )

    def __call__(self, history: mx.array, logits: mx.array) -> mx.array:
        """int [1] for the tokens so far, int [tokens], and the logits after them [1, vocabulary].

        Nothing is computed yet: MLX does so when the token is asked for.
        """
        choose, processors = self._rules
        for process in processors:
            logits = process(history, logits)
        if self._options.temperature > 0:
            logits = logits - mx.logsumexp(logits, keepdims=True)
        return choose(logits)

    def choose(self, history: Sequence[int], logits: np.ndarray) -> int:
        """The same for the tokens so far and the logits after them, float32 [vocabulary]."""
        options = self._options
        if options.repetition_penalty != 1:
            logits = logits.copy()
            last = list(history[-_PENALISED:])
            scores, penalty = logits[last], np.float32(options.repetition_penalty)
            logits[last] = np.where(scores < 0, scores * penalty, scores / penalty)
        if options.temperature == 0:
            return int(logits.argmax())
        logits = logits - logits.max()
        if options.top_p < 1:
            logits = _at_least(logits, _top_p_threshold(logits, options.top_p))
        if options.min_p > 0:
            logits = _at_least(logits, math.log(options.min_p))  # the likeliest token's is 0
        if self._top_k:
            logits = _at_least(logits, np.partition(logits, -self._top_k)[-self._top_k])
        scores = mx.array(logits[None]) * (1.0 / options.temperature)
        return int(mx.random.categorical(scores).item())


def _at_least(logits: np.ndarray, threshold: float) -> np.ndarray:
    """The others are -inf: never chosen."""
    return np.where(logits < np.float32(threshold), np.float32(-np.inf), logits)


def _top_p_threshold(logits: np.ndarray, top_p: float) -> float:
    """The smallest logit that is kept: those above it have together less than `top_p`.

    `logits` [vocabulary], 0 at most. Few tokens have nearly all of the probability, and only those
    are sorted.
    """
    mass = np.exp(logits)
    enough = np.float32(top_p) * mass.sum()
    reach = 1.0
    while mass[near := logits > -reach].sum() < enough and not near.all():
        reach *= 2
    descending = np.sort(logits[near])[::-1]
    above = np.cumsum(np.exp(descending))[:-1]  # of each token but the first: those before it
    return float(descending[int((above < enough).sum())])
