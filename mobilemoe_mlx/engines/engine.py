"""The interface of an engine: a loaded checkpoint, and sessions that are fed tokens."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilemoe_mlx.checkpoint.damage import non_finite_error
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError, did_you_mean

if TYPE_CHECKING:  # mlx-lm is slow to import, and feeding needs none of it
    from mobilemoe_mlx.sampling import Sampler

Progress = Callable[[int, int], None]

# Folders of adapters, each with the weight that its update is multiplied by.
Adapters = Sequence[tuple[Path, float]]

# How many tokens of the prompt are computed at once; between two lots an interrupt is noticed.
PREFILL_TOKENS = 512


class Engine(ABC):
    """A checkpoint that is ready to run."""

    args: ModelArgs
    folder: Path | None  # of the checkpoint; None for a model that was made in memory

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, **options: Any) -> Engine:
        """Load the checkpoint in `folder`; each engine declares its own options.

        Raises UserError for all that is wrong with the folder or an option.
        """

    @abstractmethod
    def describe(self) -> str:
        """What is loaded, for a person: sizes, form, and where it runs."""

    @abstractmethod
    def session(self, context: int | None = None) -> Session:
        """A new session with room for `context` tokens (None: as many as the model takes).

        Raises UserError when the model takes fewer, or for a context below 1.
        """

    def expert_reads(self) -> dict[str, int] | None:
        """Since it was opened: hits, misses and bytes_read of routed experts.

        None for an engine that has them all in memory or in a memory map.
        """
        return None

    def check_context(self, context: int | None) -> int:
        """The context of a new session; see `session`."""
        most = self.args.max_position_embeddings
        context = most if context is None else context
        if not 1 <= context <= most:
            raise UserError(f"A context of {context} tokens: this model takes 1 to {most}.")
        return context


class Session(ABC):
    """The tokens fed so far, as a key/value cache, and the way to feed more."""

    engine: Engine
    context: int  # positions in all

    @property
    @abstractmethod
    def position(self) -> int:
        """How many tokens have been fed, which is where the next one goes."""

    @abstractmethod
    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on. Raises UserError when so many were not fed."""

    @abstractmethod
    def _feed(self, token_ids: list[int], all_logits: bool) -> np.ndarray:
        """`feed`, for tokens that are checked."""

    def feed(self, token_ids: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Append tokens; -> the logits after the last of them, float32 [1, vocabulary].

        `all_logits`: after each of them, float32 [tokens, vocabulary]. Raises UserError for no
        token, for ids that are not in the vocabulary, for more tokens than the context has room
        for, and for logits that are not finite, naming a damaged tensor.
        """
        tokens = self.check_tokens(token_ids)
        logits = self._feed(tokens, all_logits)
        if not np.isfinite(logits).all():
            raise non_finite_error(self.engine.folder)
        return logits

    def generate(
        self,
        token_ids: Sequence[int],
        sampler: Sampler,
        max_tokens: int,
        progress: Progress | None = None,
    ) -> Iterator[int]:
        """Feed a prompt, then yield up to `max_tokens` tokens that continue it.

        A token is fed at the latest when the next one is asked for. `progress` is called with
        (tokens done, tokens in all) while the prompt is computed, and may raise to stop it;
        `position` then says how far it came. Errors: see `feed`.
        """
        tokens = self.check_tokens(token_ids)
        progress = progress or (lambda done, total: None)
        progress(0, len(tokens))
        for start in range(0, len(tokens), PREFILL_TOKENS):
            logits = self.feed(tokens[start : start + PREFILL_TOKENS])
            progress(min(start + PREFILL_TOKENS, len(tokens)), len(tokens))
        for count in range(1, max_tokens + 1):
            token = sampler.choose(tokens, logits[-1])
            tokens.append(token)
            yield token
            if count < max_tokens:
                logits = self.feed([token])

    def check_tokens(self, token_ids: Sequence[int]) -> list[int]:
        """`token_ids` as a list; raises UserError for what cannot be fed."""
        try:
            tokens = [operator.index(token) for token in token_ids]
        except TypeError as error:
            raise UserError(f"Tokens to feed are whole numbers: {error}.") from None
        vocabulary = self.engine.args.vocab_size
        if not tokens:
            raise UserError("There is no token to feed.")
        if not 0 <= min(tokens) <= max(tokens) < vocabulary:
            raise UserError(
                f"The prompt has token {max(tokens, key=abs)}, but the model knows 0 to "
                f"{vocabulary - 1}: it is of another model's tokenizer."
            )
        if self.position + len(tokens) > self.context:
            raise UserError(
                f"{self.position + len(tokens)} tokens do not fit into a context of {self.context}."
            )
        return tokens

    def check_rewind(self, position: int) -> None:
        """Raise UserError unless `position` lies behind the session's own."""
        if not 0 <= position <= self.position:
            raise UserError(f"Cannot rewind to token {position}: {self.position} have been fed.")


def check_choice(what: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError unless an option is among those `known`."""
    if value not in known:
        raise UserError(
            f"There is no {what} '{value}'{did_you_mean(value, known)}. Known: {', '.join(known)}."
        )
