"""What a finished stage read and reached: for the person at the terminal, and for the metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mobilemoe_mlx.data.statistics import DataStatistics, SourceStatistics
from mobilemoe_mlx.train.recipe import STAGE_TITLES


@dataclass(frozen=True)
class StageSummary:
    """A finished stage. Losses are nats a target on the held-out data."""

    stage: str
    steps: int
    # Of training steps, without evaluations and checkpoints; None where the metrics lack steps.
    seconds: float | None
    tokens_per_second: float  # without padding, of the steps that the metrics have
    data: DataStatistics
    heldout: Mapping[str, SourceStatistics]  # what became of the held-out records
    heldout_before: float | None
    heldout_after: float | None
    best_step: int | None = None  # whose weights are kept, where they are the best on held-out data

    def record(self) -> dict[str, Any]:
        """The last line of the stage's metrics."""
        return {
            "step": self.steps,
            "summary": {
                "tokens": self.data.tokens,
                "padding": self.data.padding,
                "seconds": self.seconds,
                "tokens_per_second": round(self.tokens_per_second, 1),
                "heldout_before": self.heldout_before,
                "heldout_after": self.heldout_after,
                "best_step": self.best_step,
                "heldout": {name: counts.to_dict() for name, counts in self.heldout.items()},
            },
            "sources": self.data.to_dict()["sources"],
        }

    def lines(self) -> Iterator[str]:
        """The summary for the terminal, line by line."""
        time = "" if self.seconds is None else f" in {duration(self.seconds)}"
        yield (
            f"{STAGE_TITLES[self.stage]} is finished: {self.steps:,} steps, "
            f"{self.data.tokens:,} tokens{time} ({self.tokens_per_second:,.0f} tokens/s)"
        )
        for name, counts in self.data.sources.items():
            yield f"  {name}: {counts.summary()}"
        if self.data.padding:
            share = self.data.padding / self.data.positions
            yield f"  padding: {self.data.padding:,} positions ({share:.0%}), not among the tokens"
        for name, counts in self.heldout.items():
            if counts.skipped or counts.truncated:
                yield f"  held out, {name}: {counts.summary()}"
        if self.heldout_before is not None and self.heldout_after is not None:
            of = "" if self.best_step is None else f", at step {self.best_step:,}, which is kept"
            yield (
                f"  held-out loss: {self.heldout_before:.4f} before, {self.heldout_after:.4f} "
                f"after{of} (nats a target)"
            )


def summarize(
    stage: str,
    steps: int,
    rows: Sequence[Mapping[str, Any]],
    data: DataStatistics,
    heldout: Mapping[str, SourceStatistics],
    losses: Mapping[str, float],
    best_step: int | None = None,
) -> StageSummary:
    """The summary of a stage of `steps` steps from its metrics' `rows` and what its data counted.

    `losses`: "start" and "end" on the held-out data, where there is any.
    """
    recorded = [row for row in rows if {"loss", "tokens", "tokens_per_second"} <= row.keys()]
    seconds = sum(row["tokens"] / max(row["tokens_per_second"], 1e-9) for row in recorded)
    return StageSummary(
        stage=stage,
        steps=steps,
        seconds=round(seconds, 3) if len(recorded) == steps else None,
        tokens_per_second=sum(row["tokens"] for row in recorded) / max(seconds, 1e-9),
        data=data,
        heldout=heldout,
        heldout_before=losses.get("start"),
        heldout_after=losses.get("end"),
        best_step=best_step,
    )


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "7 min 30 s", "3 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
