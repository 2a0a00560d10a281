"""The [data] table of a fine-tuning recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mobilemoe_mlx.data.record_form import Features
from mobilemoe_mlx.data.source_config import LossOn, OnBadRecord
from mobilemoe_mlx.tables import Bounds, Count, CountOrZero


@dataclass(frozen=True)
class FinetuneDataConfig:
    """What a fine-tuning run reads, and how it is learnt."""

    path: str = ""  # --data: a folder, a file, a mixture file or a hub dataset
    context: Count = 2048  # tokens per row
    loss_on: LossOn = "answers"
    document_mask: bool = True  # keep attention within each packed record
    heldout: str = ""  # a file to evaluate on; empty: valid.jsonl, else a part is split off
    # Of the records, to split off; 0: none.
    heldout_fraction: Annotated[float, Bounds(least=0, below=1)] = 0.05
    heldout_tokens: Count = 65536  # most positions that an evaluation computes
    heldout_stride: Count = 1  # between the first and the last step: every n-th held-out batch only
    # Names of fields, as in mlx-lm; empty: found by the first record.
    prompt_feature: str = ""
    completion_feature: str = ""
    chat_feature: str = ""
    text_feature: str = ""
    tools_feature: str = "tools"
    # Of a hub dataset.
    subset: str = ""
    revision: str = ""
    train_split: str = "train"
    valid_split: str = ""  # empty: valid or validation, where the dataset has one
    test_split: str = ""  # empty: test, where the dataset has one
    seed: CountOrZero = 0
    on_bad_record: OnBadRecord = "error"

    @property
    def features(self) -> Features:
        """The names of fields that are given."""
        return Features(
            self.prompt_feature, self.completion_feature, self.chat_feature, self.text_feature
        )
