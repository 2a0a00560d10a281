"""What became of the data: per source what was read, left out (and why) and cut; and padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why a record was left out."""

    BAD_RECORD = "bad record"  # see `on_bad_record`
    EMPTY = "empty"
    NO_ANSWER = "no answer"
    EMPTY_ANSWER = "empty answer"
    TOOLS = "tool calls or results"
    UNKNOWN_ROLE = "unknown role"
    NOT_TEXT = "image or other content that is not text"
    BEYOND_CONTEXT = "every answer lies beyond the context"


@dataclass
class SourceStatistics:
    """Counts of one source, since the start of the stage.

    `documents` and `tokens` were given to training (a record counts again in each epoch); `tokens`
    are those left after cutting, without padding. `truncated` documents lost `tokens_cut` tokens at
    their ends. `skipped` counts, by reason, the records left out. `epochs` is the number of
    complete passes.
    """

    documents: int = 0
    tokens: int = 0
    epochs: int = 0
    truncated: int = 0
    tokens_cut: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def records(self) -> int:
        """Records read: those given and those left out."""
        return self.documents + self.skipped.total()

    def copy(self) -> SourceStatistics:
        """The counts of this moment."""
        return replace(self, skipped=Counter(self.skipped))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "records": self.records,
            "documents": self.documents,
            "tokens": self.tokens,
            "epochs": self.epochs,
            "truncated": self.truncated,
            "tokens_cut": self.tokens_cut,
            "skipped": {str(reason): n for reason, n in sorted(self.skipped.items())},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SourceStatistics:
        """What `to_dict` gave."""
        counts = {name: value for name, value in values.items() if name != "records"}
        return cls(**{**counts, "skipped": Counter(counts["skipped"])})

    def summary(self) -> str:
        """One line for people."""
        parts = [
            f"{self.records:,} records read",
            f"{self.tokens:,} tokens",
            f"{self.epochs:,} whole epoch{'s' * (self.epochs != 1)}"
            if self.epochs
            else "less than one epoch",
        ]
        if self.truncated:
            parts.append(f"{self.truncated:,} cut to the context ({self.tokens_cut:,} tokens lost)")
        if self.skipped:
            parts.append(f"left out: {reasons(self.skipped)}")
        return "; ".join(parts)


def reasons(skipped: Mapping[str, int]) -> str:
    """How many records were left out for each reason, the most frequent first, for people."""
    counts = sorted(skipped.items(), key=lambda item: -item[1])
    return ", ".join(f"{n:,} record{'s' * (n != 1)} ({reason})" for reason, n in counts)


@dataclass(frozen=True)
class DataStatistics:
    """Counts of the batches of a stage: `positions` of them all, `padding` among them."""

    positions: int
    padding: int
    sources: dict[str, SourceStatistics]

    @property
    def tokens(self) -> int:
        """Positions that hold data: those that are not padding."""
        return self.positions - self.padding

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "positions": self.positions,
            "padding": self.padding,
            "sources": {name: counts.to_dict() for name, counts in self.sources.items()},
        }
