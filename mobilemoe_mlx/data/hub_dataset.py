"""A dataset of the hub, downloaded whole, with rows by number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import datasets

from mobilemoe_mlx.data.absent_keys import without_absent_keys
from mobilemoe_mlx.errors import UserError, did_you_mean

datasets.disable_progress_bars()


class HubSplit:
    """The rows of a dataset's split, as a file of records; `sha256` tells versions of it apart."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset
        self.path = Path(name)
        self.sha256 = str(dataset._fingerprint)

    def __len__(self) -> int:
        return len(self._dataset)

    def where(self, index: int) -> str:
        """The row's place for messages; rows are counted from 1."""
        return f"row {index + 1} of {self.path}"

    def read(self, index: int) -> Mapping[str, Any]:
        """The row `index`, counted from 0."""
        row: Mapping[str, Any] = without_absent_keys(self._dataset[index])
        return row


def open_hub_dataset(
    path: str,
    *,
    subset: str | None,
    revision: str | None,
    wanted: Mapping[str, Iterable[str]],
    required: Set[str],
) -> dict[str, HubSplit]:
    """Download a dataset and open splits of it: name -> the first of `wanted[name]` that it has.

    A split may be a part, as "train[:80%]". Raises UserError saying what to check when the dataset
    cannot be had, or has none of the splits of a name in `required`.
    """
    found: dict[str, HubSplit] = {}
    try:
        known = datasets.get_dataset_split_names(path, subset, revision=revision)
        for name, candidates in wanted.items():
            split = next((c for c in candidates if c.partition("[")[0] in known), None)
            if split is not None:
                opened = datasets.load_dataset(path, subset, split=split, revision=revision)
                found[name] = HubSplit(opened, f"{path}/{split}")
    except Exception as error:  # hub, network, file system and builder raise unrelated types
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise UserError(
            f"The dataset {path} cannot be read: {reason.rstrip('.')}. Check its name, the "
            "network, and, if it is gated, that you have accepted its terms at "
            f"https://huggingface.co/datasets/{path} and are logged in (`hf auth login`); the same "
            "command goes on with a download that was interrupted."
        ) from error
    for name in required - found.keys():
        asked = next(iter(wanted[name]))
        raise UserError(
            f"The dataset {path} has no split '{asked}'{did_you_mean(asked, known)}; it has "
            f"{', '.join(known)}: choose one with `--set data.{name}_split=NAME`."
        )
    return found
