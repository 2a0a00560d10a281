"""What `--data` names: files to train on, to hold out and to test on, opened and recognised."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mobilemoe_mlx import downloads, files
from mobilemoe_mlx.data.json_lines import BadRecord
from mobilemoe_mlx.data.local_files import LocalRecords, RecordFile, find_files, open_record_file
from mobilemoe_mlx.data.mixture_config import load_mixture
from mobilemoe_mlx.data.record_form import record_form
from mobilemoe_mlx.data.source_config import SourceConfig
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.data_config import FinetuneDataConfig

_SUFFIXES = (".jsonl", ".parquet", ".txt")
_OTHER_NAMES = ("validation.jsonl", "val.jsonl", "dev.jsonl", "eval.jsonl")
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Part:
    """The records of one source; `form` is for people."""

    records: LocalRecords
    form: str

    @property
    def config(self) -> SourceConfig:
        """The source's settings."""
        return self.records.config


@dataclass(frozen=True)
class DataFiles:
    """The data of a run. `streams` are hub datasets of a mixture, which are not read beforehand."""

    train: tuple[Part, ...]
    streams: tuple[SourceConfig, ...]
    valid: Part | None
    test: Part | None
    notices: tuple[str, ...]


def open_data_files(config: FinetuneDataConfig) -> DataFiles:
    """Find and open all that `config` names; raises UserError for what is absent or unknown.

    `config.path`: a folder with train.jsonl and perhaps valid.jsonl and test.jsonl, as for mlx-lm;
    one .jsonl, .parquet or .txt file; a mixture file (.toml); or a dataset on the hub.
    """
    if not config.path:
        raise UserError("No data is given: name a folder, a file or a hub dataset with --data.")
    path = files.user_path(config.path)
    if path.is_dir():
        found = _folder(path, config)
    elif path.is_file() and path.suffix.lower() == ".toml":
        found = _mixture(path, config)
    elif path.exists():
        found = DataFiles((_file(path, "train", config),), (), None, None, ())
    elif _may_be_dataset(config.path):
        found = _hub_dataset(config)
    else:
        raise UserError(f"--data: there is no file or folder {config.path}.")
    if not config.heldout:
        return found
    heldout = _file(files.user_path(config.heldout), "valid", config)
    return dataclasses.replace(found, valid=heldout)


def _may_be_dataset(text: str) -> bool:
    """Whether what is no file or folder here can be the name of a dataset on the hub."""
    path = Path(text)
    is_file_name = path.suffix.lower() in (*_SUFFIXES, ".toml", ".json", ".csv")
    return bool(_DATASET_ID.fullmatch(text)) and not is_file_name and not path.parent.is_dir()


def _folder(folder: Path, config: FinetuneDataConfig) -> DataFiles:
    paths = {name: folder / f"{name}.jsonl" for name in ("train", "valid", "test")}
    if not paths["train"].is_file():
        if (why := downloads.unfinished(folder)) is not None:
            raise UserError(f"{folder} has no train.jsonl: {why}.")
        others = [p.name for p in files.visible(sorted(folder.iterdir())) if p.suffix in _SUFFIXES]
        more = f"; it holds {', '.join(others[:4])}: give one of these files" if others else ""
        raise UserError(f"The folder {folder} has no train.jsonl{more}.")
    notices = [
        f"{folder / name} is not read: the file to hold out is named valid.jsonl."
        for name in _OTHER_NAMES
        if (folder / name).is_file() and not paths["valid"].is_file()
    ]
    parts = {
        name: _file(path, name, config)
        for name, path in paths.items()
        if path.exists() or path.is_symlink()
    }
    return DataFiles((parts["train"],), (), parts.get("valid"), parts.get("test"), tuple(notices))


def _file(path: Path, name: str, config: FinetuneDataConfig) -> Part:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"{path} is of a kind that cannot be read: give a folder with train.jsonl, a "
            f"{', '.join(_SUFFIXES)} file, or a mixture file (.toml)."
        )
    if (why := downloads.unfinished_file(path)) is not None:
        raise UserError(f"{path} is not whole: {why}.")
    return part_of([open_record_file(path, _columns(path, config))], name, config)


def _columns(path: Path, config: FinetuneDataConfig) -> list[str]:
    """The columns of a .parquet file to read; other files have none."""
    if path.suffix.lower() != ".parquet":
        return []
    from mobilemoe_mlx.data.parquet import column_names  # slow to import, for this one kind

    names = column_names(path)
    fields = record_form(dict.fromkeys(names), config.features, str(path)).fields.values()
    return [*fields, *(name for name in names if name == config.tools_feature)]


def part_of(record_files: Iterable[RecordFile], name: str, config: FinetuneDataConfig) -> Part:
    """The records of files of one form, that of the first record that can be read."""
    record_files = list(record_files)
    first_bad: BadRecord | None = None
    for file in record_files:
        for index in range(len(file)):
            try:
                row = file.read(index)
            except BadRecord as error:
                first_bad = first_bad or error
                if config.on_bad_record == "error":
                    break
                continue
            form = record_form(row, config.features, file.where(index))
            source = SourceConfig(
                name=name,
                weight=1.0,
                format=form.format,
                files=tuple(str(file.path) for file in record_files),
                tools_field=config.tools_feature,
                **form.fields,
            )
            return Part(LocalRecords(source, record_files), form.name)
    if first_bad is not None:
        raise UserError(f"{str(first_bad).rstrip('.')}. Correct it, or download the file again.")
    raise UserError(f"{' and '.join(str(file.path) for file in record_files)} has no records.")


def _mixture(path: Path, config: FinetuneDataConfig) -> DataFiles:
    mixture = load_mixture(path)
    train = []
    notices: list[str] = []
    heldout = [files.user_path(config.heldout)] if config.heldout else []
    for source in mixture.sources:
        if mixture.format == "chat":
            source = dataclasses.replace(source, tools_field=config.tools_feature)
        if not source.files:
            continue
        found = find_files(source, path.parent, heldout)
        notices += found.notices
        opened = [open_record_file(file, source.fields) for file in found.paths]
        train.append(Part(LocalRecords(source, opened), mixture.format))
    streams = tuple(
        dataclasses.replace(source, tools_field=config.tools_feature)
        for source in mixture.sources
        if not source.files
    )
    return DataFiles(tuple(train), streams, None, None, tuple(notices))


def _hub_dataset(config: FinetuneDataConfig) -> DataFiles:
    from mobilemoe_mlx.data.hub_dataset import open_hub_dataset  # imports `datasets`, slowly

    splits = open_hub_dataset(
        config.path,
        subset=config.subset or None,
        revision=config.revision or None,
        wanted={
            "train": (config.train_split,),
            "valid": (config.valid_split,) if config.valid_split else ("valid", "validation"),
            "test": (config.test_split,) if config.test_split else ("test",),
        },
        required={"train"}
        | ({"valid"} if config.valid_split else set())
        | ({"test"} if config.test_split else set()),
    )
    parts = {name: part_of([split], name, config) for name, split in splits.items()}
    return DataFiles((parts["train"],), (), parts.get("valid"), parts.get("test"), ())
