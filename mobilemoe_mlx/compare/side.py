"""One side of a comparison: a model, what computes it, and what that shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.numerics.tolerance import Limit
from mobilemoe_mlx.numerics.values import PartialTrace


class Run(ABC):
    """A side with its weights in memory."""

    @abstractmethod
    def start(self, tokens: list[int]) -> PartialTrace:
        """Compute a sequence, with every token's logits; to be called once, and first."""

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens as decoding does; -> logits float32 [tokens, vocabulary]."""


@dataclass(frozen=True)
class Side:
    """A model and what computes it, opened as far as headers go."""

    folder: Path
    engine: str  # "mlx", "torch", "cpu", "onnx" or "coreml"
    precision: str  # what the engine computes in: "float32", "int8", ...
    label: str  # the two for a person: "CPU engine int8"
    args: ModelArgs
    context: int  # the most tokens of a sequence
    limit: Limit  # how far its rounding alone may take the logits
    tokenizer: Path  # the folder that would hold it
    packages: tuple[str, ...]  # distributions whose versions matter
    load: Callable[[], Run] = field(compare=False, repr=False)
    checkpoint: Checkpoint | None = field(
        default=None, compare=False, repr=False
    )  # None: an export
    has_cache: bool = True  # whether a token more costs less than the whole sequence again
    # About how long a token takes, on two processor cores; 0: no time to speak of.
    seconds_per_token: float = 0.0
