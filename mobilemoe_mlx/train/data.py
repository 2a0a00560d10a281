"""A stage's data: its mixture, its held-out batches, and a check of both."""

from __future__ import annotations

from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mobilemoe_mlx.data.check import CheckedMixture, check_mixture
from mobilemoe_mlx.data.local_files import find_files
from mobilemoe_mlx.data.mixture import Mixture, MixtureConfig, document_encoder, load_mixture
from mobilemoe_mlx.data.packing import Batch, heldout_batches
from mobilemoe_mlx.data.records import Record
from mobilemoe_mlx.data.source_config import SourceConfig
from mobilemoe_mlx.data.sources import read_records
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train.recipe import Recipe, StageConfig


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
    """The stage's held-out batches (the same in every process), if it names any.

    The first `heldout_tokens` positions, divided evenly among the sources of a held-out mixture.
    """
    data = stage.data
    if not data.heldout:
        return []
    config = load_mixture(recipe.path(data.mixture))
    sources, folder = _heldout(recipe, stage, config)
    encode = document_encoder(tokenizer, config.format)
    tokens = data.heldout_tokens // len(sources)
    rows = stage.micro_batch_size or stage.batch_size  # what a process computes at a time
    batches: list[Batch] = []
    for source in sources:
        found, _ = heldout_batches(
            source,
            folder,
            encode,
            data.context,
            rows,
            tokens,
            on_bad_record=data.on_bad_record,
        )
        batches += found
    return batches


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
        for source in local.sources:
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
