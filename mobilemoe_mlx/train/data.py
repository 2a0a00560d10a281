"""A stage's data: its mixture, its held-out batches, and a check of both."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.data.check import CheckedMixture, check_mixture
from mobilemoe_mlx.data.local_files import find_files
from mobilemoe_mlx.data.mixture import Mixture, document_encoder
from mobilemoe_mlx.data.mixture_config import MixtureConfig, load_mixture
from mobilemoe_mlx.data.packing import Batch, PackedBatches, batches_per_pass, heldout_batches
from mobilemoe_mlx.data.records import Record
from mobilemoe_mlx.data.source_config import SourceConfig
from mobilemoe_mlx.data.sources import read_records
from mobilemoe_mlx.data.statistics import Reason, SourceStatistics
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train.recipe import Recipe, StageConfig


@dataclass(frozen=True)
class Heldout:
    """A stage's held-out batches, the same in every process, and what became of their records."""

    batches: list[Batch]
    statistics: dict[str, SourceStatistics]  # by source name
    digests: dict[str, str]  # SHA-256 of each local file, by name; "name (2)": the second of it


@dataclass(frozen=True)
class StageData:
    """What one stage reads, opened and found usable."""

    format: str
    batches: PackedBatches  # this process's rows
    heldout: Heldout
    notices: tuple[str, ...]  # sentences about files that are read once or left out


def open_stage(
    recipe: Recipe, name: str, tokenizer: TokenizerWrapper, group: mx.distributed.Group
) -> tuple[StageConfig, StageData]:
    """Check and open all that stage `name` reads.

    Returns the stage's config, its `tokens` counted where it gives `epochs`, and the data. Raises
    UserError, saying which override names other data.
    """
    stage = recipe.stages[name]
    with _blamed_on(recipe, f"{name}.data.mixture"):
        load_mixture(recipe.path(stage.data.mixture))
    with _blamed_on(recipe, f"{name}.data.heldout"):
        heldout = read_heldout(recipe, stage, tokenizer)
    with _blamed_on(recipe, f"{name}.data.mixture"):
        checked = check_data(recipe, stage, tokenizer)
        if stage.epochs:
            stage = _with_tokens_counted(recipe, name, tokenizer)
        batches = PackedBatches(
            open_mixture(recipe, stage, tokenizer),
            stage.data.context,
            stage.batch_size,
            split_documents=checked.format == "text",
            rank=group.rank(),
            world_size=group.size(),
        )
        # The first batch, on trial: a stream's fields are known only when it is read.
        start = batches.state_dict()
        next(batches)
        batches.load_state_dict(start)
    return stage, StageData(checked.format, batches, heldout, checked.notices)


def data_folder(recipe: Recipe, stage: StageConfig) -> Path:
    """Where the local files of the stage's mixture lie: data.folder, or beside the mixture file."""
    data = stage.data
    return recipe.path(data.folder) if data.folder else recipe.path(data.mixture).parent


def open_mixture(recipe: Recipe, stage: StageConfig, tokenizer: TokenizerWrapper) -> Mixture:
    """The stage's endless stream of encoded documents, from its start."""
    config = load_mixture(recipe.path(stage.data.mixture))
    return Mixture(
        config,
        data_folder(recipe, stage),
        document_encoder(tokenizer, config.format),
        stage.data.seed,
        on_bad_record=stage.data.on_bad_record,
        heldout=_heldout_files(recipe, stage, config),
    )


def open_heldout(recipe: Recipe, stage: StageConfig, tokenizer: TokenizerWrapper) -> list[Batch]:
    """The stage's held-out batches, if it names any."""
    return read_heldout(recipe, stage, tokenizer).batches


def read_heldout(recipe: Recipe, stage: StageConfig, tokenizer: TokenizerWrapper) -> Heldout:
    """The stage's held-out batches, with counts and digests; nothing where none are named.

    The first `heldout_tokens` positions, divided evenly among the sources of a held-out mixture.
    """
    data = stage.data
    heldout = Heldout([], {}, {})
    if not data.heldout:
        return heldout
    config = load_mixture(recipe.path(data.mixture))
    sources, folder = _heldout(recipe, stage, config)
    _check_apart(sources, config.sources)
    for source in sources:
        batches, heldout.statistics[source.name] = heldout_batches(
            source,
            folder,
            document_encoder(tokenizer, config.format),
            data.context,
            stage.rows_at_a_time,
            data.heldout_tokens // len(sources),
            on_bad_record=data.on_bad_record,
        )
        heldout.batches.extend(batches)
    names: Counter[str] = Counter()
    for path in _heldout_files(recipe, stage, config):
        names[path.name] += 1
        again = f" ({names[path.name]})" if names[path.name] > 1 else ""
        heldout.digests[path.name + again] = files.sha256(path)
    return heldout


def check_data(recipe: Recipe, stage: StageConfig, tokenizer: TokenizerWrapper) -> CheckedMixture:
    """Read all the local data of a stage once, the held-out files too, before anything is written.

    Raises UserError for whatever would stop the stage later on: a bad record, by file and line; a
    source, held out or not, without a conversation that has a target within the context.
    """
    data = stage.data
    config = load_mixture(recipe.path(data.mixture))
    encode = document_encoder(tokenizer, config.format)
    longest = data.context + 1 if config.format == "chat" else None
    heldout_records: list[Record] = []
    if data.heldout:
        sources, folder = _heldout(recipe, stage, config)
        local = MixtureConfig(config.format, tuple(s for s in sources if s.files))
        try:
            check_mixture(local, folder, encode, longest, on_bad_record=data.on_bad_record)
        except UserError as error:
            raise UserError(f"data.heldout: {error}") from None
        for source in (s for s in sources if s.files or s.dataset_folder is not None):
            records = read_records(source, folder, on_bad_record=data.on_bad_record)
            heldout_records += [r for r in records if not isinstance(r, Reason)]
    return check_mixture(
        config,
        data_folder(recipe, stage),
        encode,
        longest,
        on_bad_record=data.on_bad_record,
        heldout=_heldout_files(recipe, stage, config),
        heldout_records=heldout_records,
    )


def _check_apart(heldout: Iterable[SourceConfig], training: Iterable[SourceConfig]) -> None:
    """Raise UserError for a dataset that is both held out and trained on."""
    for held, source in itertools.product(heldout, training):
        if held.is_dataset_of(source):
            raise UserError(
                f"source '{held.name}' is the dataset that source '{source.name}' "
                f"trains on ({held.path}, split {held.split}): hold out another split, or another "
                "dataset."
            )


def _with_tokens_counted(recipe: Recipe, name: str, tokenizer: TokenizerWrapper) -> StageConfig:
    """The stage with the positions that `epochs` passes over its local sources fill."""
    stage = recipe.stages[name]
    config = load_mixture(recipe.path(stage.data.mixture))
    if streams := [source.name for source in config.sources if not source.files]:
        raise UserError(
            f"{name}.epochs needs local files, since the length of a stream is not known "
            f"({', '.join(streams)}): give `--set {name}.tokens=N` instead"
        )
    batches = batches_per_pass(
        config,
        data_folder(recipe, stage),
        document_encoder(tokenizer, config.format),
        stage.data.context,
        stage.batch_size,
        on_bad_record=stage.data.on_bad_record,
        heldout=_heldout_files(recipe, stage, config),
    )
    if not stage.epochs * batches * stage.batch_size * stage.data.context < tables.TOO_LARGE:
        raise UserError(f"{name}.epochs is {stage.epochs:g}; it must be a smaller number")
    steps = max(1, math.ceil(stage.epochs * batches))
    counted = dataclasses.replace(stage, tokens=steps * stage.batch_size * stage.data.context)
    counted.check_warmup(name)
    return counted


@contextlib.contextmanager
def _blamed_on(recipe: Recipe, key: str) -> Iterator[None]:
    """Name `key` in an error and, where the user did not give it, how to override it."""
    remedies = {
        "mixture": "name your own with `--set data.mixture=FILE`",
        "heldout": "name your own with `--set data.heldout=FILE`, or do without: "
        "`--set 'data.heldout=[]'`",
    }
    try:
        yield
    except UserError as error:
        remedy = recipe.remedy(key, remedies[key.rpartition(".")[2]])
        raise UserError(f"{key}: {error}{remedy}") from None


def _heldout(
    recipe: Recipe, stage: StageConfig, config: MixtureConfig
) -> tuple[tuple[SourceConfig, ...], Path]:
    """The held-out sources of a stage that names some, and the folder of their local files."""
    data = stage.data
    if not data.heldout[0].endswith(".toml"):
        table = {"name": "heldout", "weight": 1.0, "files": list(data.heldout)}
        return (SourceConfig.from_dict(table, config.format),), data_folder(recipe, stage)
    path = recipe.path(data.heldout[0])
    heldout = load_mixture(path)
    if heldout.format != config.format or len(data.heldout) > 1:
        raise UserError(
            f"data.heldout: give one mixture file, of format '{config.format}' like "
            f"{data.mixture}; {path.name} has '{heldout.format}'."
        )
    return heldout.sources, path.parent


def _heldout_files(recipe: Recipe, stage: StageConfig, config: MixtureConfig) -> list[Path]:
    if not stage.data.heldout:
        return []
    sources, folder = _heldout(recipe, stage, config)
    return [path for s in sources if s.files for path in find_files(s, folder).paths]
