"""The harness's data sets from this machine alone: a folder, or Hugging Face's caches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError


class MissingDataset(Exception):
    """A data set of the hub that is not on this machine."""

    def __init__(self, repo: str, why: str = "") -> None:
        super().__init__(repo, why)
        self.repo, self.why = repo, why


def fetch_command(repo: str) -> str:
    """The command that brings a data set into Hugging Face's cache."""
    return f"hf download --repo-type dataset {repo}"


class LocalDatasets:
    """Stands in for `datasets.load_dataset` while tasks are loaded; nothing is downloaded.

    A data set `owner/name` is looked for in `data_dir` (as owner/name, then as name), in the cache
    of `datasets`, and in that of `hf download`. Relative names of files (`data_files` of a task's
    YAML) are looked for in the current folder, in `data_dir`, and beside the task's file.
    """

    def __init__(self, data_dir: Path | None = None) -> None:
        """Raises UserError where `data_dir` is no folder."""
        if data_dir is not None:
            files.check_folder(data_dir, "--data-dir")
        self._data_dir = data_dir
        self._task = ""
        self._beside: tuple[Path, ...] = ()

    def next_task(self, name: str, folders: Iterable[Path]) -> None:
        """The task or group that is loaded next, and the folders that its files stand in."""
        self._task, self._beside = name, tuple(dict.fromkeys(folders))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Take the place of `datasets.load_dataset`, which stays offline meanwhile."""
        import datasets

        load, offline = datasets.load_dataset, datasets.config.HF_HUB_OFFLINE

        def load_local(path: str, name: str | None = None, **options: Any) -> Any:
            return self._load(load, path, name, options)

        datasets.load_dataset, datasets.config.HF_HUB_OFFLINE = load_local, True
        try:
            yield
        finally:
            datasets.load_dataset, datasets.config.HF_HUB_OFFLINE = load, offline

    def _load(self, load: Any, path: str, name: str | None, options: dict[str, Any]) -> Any:
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        if path in _PACKAGED_DATASETS_MODULES:  # "json" and others: files are named
            if "data_files" in options:
                options["data_files"] = self._found(options["data_files"])
            return load(path, name, **options)
        if Path(path).is_dir():
            return load(path, name, **options)
        if (folder := self._in_data_dir(path)) is not None:
            return load(str(folder), name, **options)
        try:
            return load(path, name, **options)
        except Exception as error:  # of many kinds, none of which tells an absent data set
            why = str(error)
        if (folder := _snapshot(path)) is None:
            raise MissingDataset(path, why)
        return load(str(folder), name, **options)

    def _in_data_dir(self, path: str) -> Path | None:
        if self._data_dir is None:
            return None
        places = (self._data_dir / path, self._data_dir / Path(path).name)
        return next((place for place in places if place.is_dir()), None)

    def _found(self, named: Any) -> Any:
        """`data_files` with each relative name made that of the file which is there."""
        if isinstance(named, Mapping):
            return {split: self._found(each) for split, each in named.items()}
        if isinstance(named, Sequence) and not isinstance(named, str):
            return [self._found(each) for each in named]
        if "://" in named:
            raise UserError(
                f"The task {self._task} needs the data file {named}, and nothing is downloaded: "
                "fetch it, and name the file in a task of your own (--include)."
            )
        places = [Path(), *([self._data_dir] if self._data_dir else []), *self._beside]
        for place in places:
            if files.find(place, named):
                return str(files.user_path(place / named))
        where = ", ".join(str(place.absolute()) for place in places)
        raise UserError(
            f"The task {self._task} needs the data file {named}, which is not in {where}."
        )


def _snapshot(repo: str) -> Path | None:
    """The newest folder that `hf download` made of a data set, if there is one."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(repo, repo_type="dataset", local_files_only=True)
        )
    except Exception:  # not there, or no name of a repository
        return None
