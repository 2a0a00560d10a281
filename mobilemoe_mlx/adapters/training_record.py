"""What an adapter's folder tells of the run that made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingRecord:
    """Losses are nats a target; None where nothing was held out, or there is no test file."""

    method: str
    data: str
    form: Literal["chat", "text"]
    steps: int
    heldout_before: float | None = None
    heldout_after: float | None = None
    test_loss: float | None = None
    # Of an adapter beside an INT4 base: how much of its update a fuse into INT4 keeps.
    survives_int4: float | None = None
