"""The choice of the next token from logits, by mlx-lm's samplers, whatever the engine."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from mobilemoe_mlx.generation_options import GenerationOptions


class Sampler:
    """Chooses tokens as `options` say, and sets mlx's random state if they have a seed."""

    def __init__(self, options: GenerationOptions, vocab_size: int) -> None:
        if options.seed is not None:
            mx.random.seed(options.seed)
        self._choose = make_sampler(
            options.temperature,
            top_p=options.top_p,
            min_p=options.min_p,
            # mlx-lm refuses a top-k that keeps everything.
            top_k=options.top_k if options.top_k < vocab_size else 0,
        )
        penalty = options.repetition_penalty if options.repetition_penalty != 1 else None
        self._processors = make_logits_processors(repetition_penalty=penalty)

    def __call__(self, history: mx.array, logits: mx.array) -> mx.array:
        """int [1] for the tokens so far, int [tokens], and the logits after them [1, vocabulary].

        Nothing is computed yet: MLX does so when the token is asked for.
        """
        for process in self._processors:
            logits = process(history, logits)
        return self._choose(logits - mx.logsumexp(logits, keepdims=True))
