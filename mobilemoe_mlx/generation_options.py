"""How to continue a prompt: what the command line offers and generation obeys."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mobilemoe_mlx.errors import UserError

# 1 / temperature multiplies the log-probabilities; below this, float16 ones could all overflow.
MIN_TEMPERATURE = 0.01


@dataclass(frozen=True)
class GenerationOptions:
    """How to continue a prompt; raises UserError, naming the option, for a senseless value.

    With `temperature` 0 the likeliest token is taken, whatever top-p, top-k, min-p and seed say.
    The three filters apply one after the other, before the temperature (mlx-lm's order). The
    repetition penalty divides the scores of the last 20 tokens (mlx-lm's window).
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0  # keep the likeliest tokens that together have this probability; 1: all
    top_k: int = 0  # keep this many tokens; 0: all
    min_p: float = 0.0  # keep tokens at least this probable, relative to the likeliest; 0: all
    repetition_penalty: float = 1.0  # 1: none
    seed: int | None = None  # of mlx's random state, set before the first token; None: left as is
    stop: tuple[str, ...] = ()  # text that ends the answer, and is not part of it

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise _bad("max-tokens", self.max_tokens, "at least 1")
        good = self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf
        if not good:
            raise _bad("temperature", self.temperature, f"0 (greedy) or at least {MIN_TEMPERATURE}")
        if not 0 < self.top_p <= 1:
            raise _bad("top-p", self.top_p, "above 0 and at most 1")
        if self.top_k < 0:
            raise _bad("top-k", self.top_k, "at least 1, or 0 for no limit")
        if not 0 <= self.min_p <= 1:
            raise _bad("min-p", self.min_p, "from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise _bad("repetition-penalty", self.repetition_penalty, "a positive number")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise _bad("seed", self.seed, "a whole number from 0 to 2^64 - 1")
        if isinstance(self.stop, str) or not all(self.stop):
            raise _bad("stop", self.stop, "one or more strings, none of them empty")


def _bad(option: str, value: object, allowed: str) -> UserError:
    return UserError(f"{option} is {value!r}; it must be {allowed}.")
