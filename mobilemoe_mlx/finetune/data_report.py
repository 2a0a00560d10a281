"""What a run's data holds, for people and as JSON: counts, lengths, cuts, and what is left out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilemoe_mlx import text_table
from mobilemoe_mlx.data.statistics import reasons
from mobilemoe_mlx.finetune.data_check import CheckedPart


@dataclass(frozen=True)
class PartReport:
    """One part of the data; lengths are in tokens, before cutting, of the usable records."""

    name: str  # "train", "held out" or "test"; of a mixture the source's name
    where: str
    form: str  # "chat", "completions", "ShareGPT" or "text"
    records: int
    tokens: int  # after cutting
    learnt: int  # of them, those with loss
    shortest: int
    median: int
    percentile_95: int
    longest: int
    truncated: int  # records cut to the context
    tokens_cut: int

    @classmethod
    def of(cls, name: str, checked: CheckedPart, context: int) -> PartReport:
        """Count the usable records of a part."""
        lengths = checked.lengths
        kept = lengths if checked.splits_documents else np.minimum(lengths, context + 1)
        middle, most = np.percentile(lengths, [50, 95], method="inverted_cdf").tolist()
        return cls(
            name=name,
            where=", ".join(str(file.path) for file in checked.records.files),
            form=checked.part.form,
            records=len(lengths),
            tokens=int(kept.sum()),
            learnt=int(checked.learnt.sum()),
            shortest=int(lengths.min()),
            median=int(middle),
            percentile_95=int(most),
            longest=int(lengths.max()),
            truncated=int((kept < lengths).sum()),
            tokens_cut=int((lengths - kept).sum()),
        )


@dataclass(frozen=True)
class LeftOut:
    """The records of a source that are not used."""

    where: str
    skipped: dict[str, int]  # by reason (data.statistics)
    first_bad: str | None  # its place, and what is wrong with it


@dataclass(frozen=True)
class DataReport:
    """All of a run's data. `batches_per_epoch` and `padding` (a share): None with a stream."""

    path: str
    context: int
    batch_size: int
    loss_on: str
    parts: tuple[PartReport, ...]
    left_out: tuple[LeftOut, ...]
    streams: tuple[str, ...]  # hub datasets of a mixture, which are not read beforehand
    batches_per_epoch: float | None
    padding: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """For people: a line for each part, and what there is to say about them."""
        head = ["data", "form", "records", "tokens", "learnt", "min", "median", "95 %", "max"]
        rows = [head]
        for part in self.parts:
            numbers = (part.records, part.tokens, part.learnt, part.shortest, part.median)
            counts = (*numbers, part.percentile_95, part.longest)
            rows.append([part.name, part.form, *(f"{n:,}" for n in counts)])
        lines = [text_table.columns(rows)]
        for part in self.parts:
            if part.truncated:
                lines.append(
                    f"{part.name}: {part.truncated:,} records are cut to the context of "
                    f"{self.context:,} tokens ({part.tokens_cut:,} tokens lost)."
                )
        for source in self.left_out:
            lines.append(f"Left out of {source.where}: {reasons(source.skipped)}.")
            if source.first_bad is not None:
                lines.append(f"The first bad record: {source.first_bad}.")
        if self.batches_per_epoch is not None:
            lines.append(
                f"One pass fills {self.batches_per_epoch:,.1f} batches of {self.batch_size} x "
                f"{self.context:,} positions, {self.padding:.0%} of them padding."
            )
        lines += [f"{name} is streamed, and checked as it is read." for name in self.streams]
        return "\n".join([*lines, *self.notes])
