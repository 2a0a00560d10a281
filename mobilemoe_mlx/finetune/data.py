"""The data of a fine-tuning run: read and checked whole, split, and packed into batches."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.data.conversation_encoder import ConversationEncoder
from mobilemoe_mlx.data.mixture import Document, Encode, Mixture, document_encoder, encoded
from mobilemoe_mlx.data.mixture_config import MixtureConfig
from mobilemoe_mlx.data.packing import PADDING, Batch, PackedBatches, batches_filled, packed
from mobilemoe_mlx.data.source_config import Format
from mobilemoe_mlx.data.statistics import SourceStatistics
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.data_check import CheckedPart, check_part
from mobilemoe_mlx.finetune.data_config import FinetuneDataConfig
from mobilemoe_mlx.finetune.data_files import DataFiles, Part, open_data_files
from mobilemoe_mlx.finetune.data_report import DataReport, LeftOut, PartReport
from mobilemoe_mlx.finetune.heldout_split import heldout_digests
from mobilemoe_mlx.tokenizer import ChatTokenizer
from mobilemoe_mlx.train.data import Heldout, StageData

_WHOLE = 2**62  # positions: more than any file fills


@dataclass(frozen=True)
class FinetuneData:
    """What a run reads, found usable; `stage` is what its training loop takes.

    `test` has no batches where there is no test file. `steps_per_epoch`: the batches that one pass
    fills; None with a stream of the hub, whose length is not known. `digests`: SHA-256 of each
    file. `template_note`: a sentence where the tokenizer has no chat template.
    """

    stage: StageData
    test: Heldout
    steps_per_epoch: float | None
    digests: dict[str, str]
    template_note: str | None
    report: DataReport


def open_finetune_data(
    config: FinetuneDataConfig,
    tokenizer: ChatTokenizer,
    batch_size: int,
    *,
    micro_rows: int = 0,
    group: mx.distributed.Group | None = None,
) -> FinetuneData:
    """Read and check all that a run reads, and open its batches; needs no model.

    `batch_size`: rows of an optimiser step, over all processes of `group`. `micro_rows`: those that
    are computed at a time (0: all), and of a held-out batch. Where neither `config.heldout` nor a
    valid.jsonl says what to hold out, a part of the records is split off, the same one every time.
    Conversations are written by the tokenizer's chat template. Raises UserError for whatever would
    stop the run later on: a bad record, by file and line; files without a usable record; a context
    in which no answer begins.
    """
    group = group or mx.distributed.init()
    opened = open_data_files(config)
    encoders = _Encoders(config, tokenizer)

    def check(part: Part) -> CheckedPart:
        encode = encoders.of(part.config.format)
        return check_part(part, encode, config.context, config.on_bad_record)

    everything = [check(part) for part in opened.train]
    valid = [check(opened.valid)] if opened.valid is not None else []
    test = [check(opened.test)] if opened.test is not None else []
    train, notes = everything, list(opened.notices)
    if not valid:
        train, valid = _split(everything, config)
        notes.append(_about_split(valid, config))
    notes += _about_repeated(train, valid if opened.valid is not None else [], "held out")
    notes += _about_repeated(train, test, "tested on")

    rows = micro_rows or batch_size
    heldout = _heldout(valid, encoders, config, rows, config.heldout_tokens)
    format = (train[0].part.config if train else opened.streams[0]).format
    batches = _open_batches(train, opened, encoders, config, batch_size, group)
    template_note = encoders.template_note
    if template_note is not None:
        notes.append(template_note)
    filled = padding = None
    if not opened.streams:
        filled, padding = _one_pass(train, config, batch_size)
    report = DataReport(
        path=config.path,
        context=config.context,
        batch_size=batch_size,
        loss_on=config.loss_on,
        parts=_part_reports(train, valid, test, config.context),
        left_out=tuple(
            LeftOut(
                ", ".join(str(file.path) for file in checked.records.files),
                dict(checked.skipped.most_common()),
                checked.first_bad,
            )
            for checked in (*everything, *(valid if opened.valid is not None else []), *test)
            if checked.skipped
        ),
        streams=tuple(source.path or source.name for source in opened.streams),
        batches_per_epoch=filled,
        padding=padding,
        notes=tuple(notes),
    )
    return FinetuneData(
        stage=StageData(format, batches, heldout, tuple(notes)),
        test=_heldout(test, encoders, config, rows, _WHOLE),
        steps_per_epoch=filled,
        digests=_digests([*everything, *valid, *test]),
        template_note=template_note,
        report=report,
    )


class _Encoders:
    """What turns records into tokens, by their format; made when it is first asked for."""

    def __init__(self, config: FinetuneDataConfig, tokenizer: ChatTokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._made: dict[Format, Encode] = {}

    def of(self, format: Format) -> Encode:
        if format not in self._made:
            self._made[format] = (
                ConversationEncoder(self._tokenizer, self._config.loss_on)
                if format == "chat"
                else document_encoder(self._tokenizer, "text")
            )
        return self._made[format]

    @property
    def template_note(self) -> str | None:
        chat = self._made.get("chat")
        if not isinstance(chat, ConversationEncoder) or chat.has_template:
            return None
        return (
            "The checkpoint has no chat template, so conversations are written in the published "
            "format of MobileMoE, which the trained model keeps as its template."
        )


def _split(
    everything: list[CheckedPart], config: FinetuneDataConfig
) -> tuple[list[CheckedPart], list[CheckedPart]]:
    """The records to train on, and those to hold out; no source is held out whole."""
    digests = [digest for checked in everything for digest in checked.digests]
    lengths = np.concatenate([checked.lengths for checked in everything] or [np.zeros(0, int)])
    held = heldout_digests(
        digests, lengths, config.heldout_fraction, config.heldout_tokens, config.seed
    )
    for checked in everything:
        if held.issuperset(checked.digests):
            held = held.difference(checked.digests)
    train, valid = [], []
    for checked in everything:
        numbers: dict[bool, list[int]] = {True: [], False: []}
        for index, digest in enumerate(checked.digests):
            numbers[digest in held].append(index)
        train.append(checked.only(numbers[False]))
        if numbers[True]:
            valid.append(checked.only(numbers[True]))
    return train, valid


def _about_split(valid: list[CheckedPart], config: FinetuneDataConfig) -> str:
    records = sum(len(checked.records) for checked in valid)
    if records:
        return (
            f"{records:,} record{'s' * (records != 1)} {'are' if records != 1 else 'is'} held out, "
            "the same every time; name a file of your own with `--set data.heldout=FILE`."
        )
    if not config.heldout_fraction:
        return "Nothing is held out, so there is no held-out loss."
    return "There are too few different records to hold one out, so there is no held-out loss."


def _about_repeated(
    train: list[CheckedPart], others: list[CheckedPart], what: str
) -> Iterator[str]:
    held = {digest for checked in others for digest in checked.digests}
    again = sum(digest in held for checked in train for digest in checked.digests)
    if again:
        yield (
            f"{again:,} of the records to train on are {what} too, so that loss says less than it "
            "seems to."
        )


def _documents(
    checked: CheckedPart, encode: Encode, config: FinetuneDataConfig, statistics: SourceStatistics
) -> Iterator[Document]:
    longest = None if checked.splits_documents else config.context + 1
    records = (checked.records.read(index) for index in range(len(checked.records)))
    return encoded(records, encode, longest, statistics)


def _heldout(
    parts: list[CheckedPart],
    encoders: _Encoders,
    config: FinetuneDataConfig,
    rows: int,
    most_tokens: int,
) -> Heldout:
    """The batches of parts that are not trained on, each with an equal share of `most_tokens`."""
    heldout = Heldout([], {}, _digests(parts))
    for checked in parts:
        name = checked.part.config.name
        statistics = heldout.statistics[name] = SourceStatistics()
        documents = _documents(checked, encoders.of(checked.part.config.format), config, statistics)
        batches = packed(
            documents,
            config.context,
            rows,
            most_tokens // len(parts),
            split_documents=checked.splits_documents,
        )
        heldout.batches.extend(map(_without_empty_rows, batches))
    return heldout


def _without_empty_rows(batch: Batch) -> Batch:
    """Rows of padding alone, which only the last batch has, would be computed for nothing."""
    full = (batch.documents != PADDING).any(axis=1)
    return Batch(*(part[full] for part in batch))


def _open_batches(
    train: list[CheckedPart],
    opened: DataFiles,
    encoders: _Encoders,
    config: FinetuneDataConfig,
    batch_size: int,
    group: mx.distributed.Group,
) -> PackedBatches:
    sources = (*(checked.part.config for checked in train), *opened.streams)
    mixture_config = MixtureConfig(sources[0].format, sources)
    mixture = Mixture(
        mixture_config,
        None,
        encoders.of(mixture_config.format),
        config.seed,
        on_bad_record=config.on_bad_record,
        records={checked.part.config.name: checked.records for checked in train},
    )
    batches = PackedBatches(
        mixture,
        config.context,
        batch_size,
        split_documents=mixture_config.format == "text",
        rank=group.rank(),
        world_size=group.size(),
    )
    if opened.streams:  # on trial: a stream's fields are known only when it is read
        start = batches.state_dict()
        try:
            next(batches)
        except UserError as error:
            raise UserError(f"--data: {error}") from None
        batches.load_state_dict(start)
    return batches


def _one_pass(
    train: list[CheckedPart], config: FinetuneDataConfig, batch_size: int
) -> tuple[float, float]:
    """How many batches one pass over the records fills, in about the order of training; padding."""
    split = train[0].splits_documents
    lengths = np.concatenate([checked.lengths for checked in train])
    lengths = np.random.default_rng([config.seed, zlib.crc32(b"one pass")]).permutation(lengths)
    if not split:
        lengths = np.minimum(lengths, config.context + 1)
    documents = (Document([0] * n, [True] * n) for n in lengths.tolist())
    filled = batches_filled(documents, config.context, batch_size, split_documents=split)
    if split:  # texts run on from row to row
        return filled, 0.0
    inputs = int(lengths.sum()) - len(lengths)  # the last token of a record is a target only
    return filled, 1 - inputs / (filled * batch_size * config.context)


def _part_reports(
    train: list[CheckedPart], valid: list[CheckedPart], test: list[CheckedPart], context: int
) -> tuple[PartReport, ...]:
    reports = [PartReport.of(checked.part.config.name, checked, context) for checked in train]
    for name, parts in (("held out", valid), ("test", test)):
        for checked in parts:
            own = checked.part.config.name
            several = f"{name}: {own}" if len(parts) > 1 else name
            reports.append(PartReport.of(several, checked, context))
    return tuple(reports)


def _digests(parts: list[CheckedPart]) -> dict[str, str]:
    """SHA-256 of each file, by name; "name (2)": the second of it."""
    found: dict[str, str] = {}
    names: Counter[str] = Counter()
    files = {str(file.path): file for checked in parts for file in checked.records.files}
    for file in files.values():
        names[file.path.name] += 1
        again = f" ({names[file.path.name]})" if names[file.path.name] > 1 else ""
        found[file.path.name + again] = file.sha256
    return found
