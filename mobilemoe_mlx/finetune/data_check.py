"""Reads every record before a model is loaded: what is usable, how long it is, what is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mobilemoe_mlx.data.json_lines import BadRecord
from mobilemoe_mlx.data.local_files import LocalRecords
from mobilemoe_mlx.data.mixture import Encode, fit
from mobilemoe_mlx.data.records import record_digest
from mobilemoe_mlx.data.source_config import OnBadRecord
from mobilemoe_mlx.data.statistics import Reason, SourceStatistics, reasons
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.data_files import Part


@dataclass(frozen=True)
class CheckedPart:
    """A source's usable records, and what was seen of all.

    For each usable record: `lengths`, its tokens before cutting; `learnt`, those with loss after
    it; `digests`, of its content. `skipped` counts the others by reason; `first_bad` is the place
    of the first bad one and what is wrong with it.
    """

    part: Part
    records: LocalRecords
    lengths: np.ndarray  # [records] int64
    learnt: np.ndarray  # [records] int64
    digests: list[bytes]
    skipped: Counter[str]
    first_bad: str | None

    @property
    def splits_documents(self) -> bool:
        """Whether records are texts, which are packed end to end and cut into rows."""
        return self.part.config.format == "text"

    def only(self, chosen: list[int]) -> CheckedPart:
        """The usable records of the numbers `chosen`; the rest is of all."""
        return CheckedPart(
            self.part,
            self.records.only([self.records.number(index) for index in chosen]),
            self.lengths[chosen],
            self.learnt[chosen],
            [self.digests[index] for index in chosen],
            self.skipped,
            self.first_bad,
        )


def check_part(part: Part, encode: Encode, context: int, on_bad_record: OnBadRecord) -> CheckedPart:
    """Read, encode and cut every record of a source to `context` + 1 tokens (texts are not cut).

    Raises UserError naming file and line of the first bad record, unless `on_bad_record` is "skip",
    and where no record is usable.
    """
    longest = None if part.config.format == "text" else context + 1
    usable: list[int] = []
    lengths: list[int] = []
    learnt: list[int] = []
    digests: list[bytes] = []
    skipped: Counter[str] = Counter()
    first_bad: str | None = None
    for index in range(len(part.records)):
        try:
            record = part.records.read(index)
            item = record if isinstance(record, Reason) else _encoded(part, index, record, encode)
            length = 0 if isinstance(item, Reason) else len(item[0])
            fitted = fit(item, longest, SourceStatistics())
        except BadRecord as error:
            said = str(error).rstrip(".")
            if on_bad_record == "error":
                raise UserError(
                    f"{said}. Correct it, or leave such records out with "
                    "`--set data.on_bad_record=skip`."
                ) from None
            first_bad = first_bad or said
            fitted = Reason.BAD_RECORD
        if isinstance(fitted, Reason):
            skipped[fitted] += 1
            continue
        assert not isinstance(record, Reason)
        usable.append(index)
        lengths.append(length)
        learnt.append(sum(fitted.loss[1:]))
        digests.append(record_digest(record))
    if not usable:
        raise UserError(_none_usable(part, skipped, first_bad, context))
    return CheckedPart(
        part,
        part.records.only(usable),
        np.array(lengths, np.int64),
        np.array(learnt, np.int64),
        digests,
        skipped,
        first_bad,
    )


def _encoded(
    part: Part, index: int, record: object, encode: Encode
) -> tuple[list[int], list[bool]] | Reason:
    try:
        return encode(record)
    except UserError as error:  # what the chat template says about this conversation
        raise BadRecord(f"{part.records.where(index)}: {error}") from None


def _none_usable(part: Part, skipped: Counter[str], first_bad: str | None, context: int) -> str:
    names = ", ".join(str(file.path) for file in part.records.files)
    said = f"{names} has no usable record; left out: {reasons(skipped)}."
    if Reason.BEYOND_CONTEXT in skipped:
        said += (
            f" No answer begins within the context of {context} tokens: choose a longer one "
            "(`--set data.context=N`), or shorten the questions."
        )
    if Reason.TOOLS in skipped:
        said += " The checkpoint's chat template writes no tool calls."
    if first_bad is not None:
        said += f" The first bad record: {first_bad}."
    return said
