"""The interface of a scorer: log-likelihoods and generations of token ids, batch by batch.

How requests are divided into batches depends on the requests alone, and what a batch gives depends
on the batch alone. So a run that was killed and resumed computes the same numbers, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.engines import Engine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation.batches import Batch, divide
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.tokenizer import ChatTokenizer

Tokens = tuple[int, ...]


class ScoringRequest(NamedTuple):
    """How likely is `continuation` after `context`? Neither is empty."""

    context: Tokens
    continuation: Tokens


class LogLikelihood(NamedTuple):
    """The answer to a ScoringRequest."""

    value: float  # sum of the natural logarithms of the continuation's probabilities
    is_greedy: bool  # whether each of its tokens is the likeliest; of equals, the lowest


class GenerationRequest(NamedTuple):
    """Continue `prompt`, which is not empty, as `options` say."""

    prompt: Tokens
    options: GenerationOptions


class Scorer(ABC):
    """A model that is ready to be scored, and its tokenizer."""

    # Tokens that are computed for a batch, roughly. An answer is kept for each batch that is done.
    # The experts' blocks of rows are fuller with many of them.
    batch_tokens = 4096

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer) -> None:
        self.engine, self.tokenizer = engine, tokenizer

    @property
    def context(self) -> int:
        """Tokens that the model takes at most."""
        return self.engine.check_context(None)

    def describe(self) -> str:
        """What is scored, for a person: see `Engine.describe`."""
        return self.engine.describe()

    def scoring_batches(self, requests: Sequence[ScoringRequest]) -> list[Batch]:
        """Batches that have each of `requests` once.

        Raises UserError for a request that cannot be computed, naming its index.
        """
        texts = [np.array(request.context + request.continuation) for request in requests]
        for index, (request, text) in enumerate(zip(requests, texts, strict=True)):
            if not request.context or not request.continuation:
                raise UserError(f"Request {index} has an empty context or continuation.")
            self._check(index, text, len(text) - 1)
        # The last token is not computed: nothing after it is asked for.
        fed = [text[:-1] for text in texts]
        return divide(fed, [len(request.context) for request in requests], self.batch_tokens)

    def generation_batches(self, requests: Sequence[GenerationRequest]) -> list[Batch]:
        """The same for prompts: together they and their answers fit into the context."""
        prompts = [np.array(request.prompt) for request in requests]
        for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            if not request.prompt:
                raise UserError(f"Request {index} has an empty prompt.")
            self._check(index, prompt, len(prompt) + request.options.max_tokens)
        return divide(prompts, [len(prompt) for prompt in prompts], self.batch_tokens)

    def _check(self, index: int, tokens: np.ndarray, needed: int) -> None:
        vocabulary = self.engine.args.vocab_size
        if needed > self.context:
            raise UserError(
                f"Request {index} needs {needed} tokens, and the model takes {self.context}."
            )
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            raise UserError(
                f"Request {index} has token {tokens.max()}, but the model knows 0 to "
                f"{vocabulary - 1}: it is of another model's tokenizer."
            )

    @abstractmethod
    def log_likelihoods(
        self, requests: Sequence[ScoringRequest], shared: int = 0
    ) -> list[LogLikelihood]:
        """Answers of one batch, in order.

        `shared`: `Batch.shared`, tokens that all of them begin with, which a scorer may keep for
        the batches that follow. Raises UserError for logits that are not finite, naming a damaged
        tensor.
        """

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest], shared: int = 0) -> list[list[int]]:
        """Token ids that continue each prompt of one batch, in order.

        An answer ends with a token that ends it, with the token that completes a stop string, or
        after `max_tokens`. The last token is part of it.
        """
