"""The held-out part of a user's data, to measure models on without training one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mobilemoe_mlx import files
from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.data import open_finetune_data
from mobilemoe_mlx.finetune.data_config import FinetuneDataConfig
from mobilemoe_mlx.tokenizer import load_tokenizer

_ROWS = 8  # of the data that are computed together at most


class HeldoutData(NamedTuple):
    """Packed rows, and whether attention is kept within each record of a row."""

    batches: list[Batch]
    document_mask: bool


def open_heldout_data(
    path: str,
    model: Path,
    *,
    whole_file: bool = False,
    most_tokens: int = FinetuneDataConfig.heldout_tokens,
) -> HeldoutData:
    """What `mobilemoe finetune --data PATH` would hold out, for the checkpoint folder `model`.

    `whole_file`: of a single file all records are taken, not a part that is split off. At most
    `most_tokens` positions, but one row. Raises UserError for data that cannot be used, naming file
    and line, and where there is nothing to hold out.
    """
    checkpoint = open_checkpoint(model)
    context = min(FinetuneDataConfig.context, checkpoint.args.max_position_embeddings)
    is_file = files.user_path(path).is_file() and not path.endswith(".toml")
    config = FinetuneDataConfig(
        path=path,
        context=context,
        heldout=path if whole_file and is_file else "",
        heldout_tokens=most_tokens,
    )
    tokenizer = load_tokenizer(model, checkpoint.end_token_ids())
    rows = min(_ROWS, max(1, most_tokens // context))
    batches = open_finetune_data(config, tokenizer, rows).stage.heldout.batches
    if not batches:
        raise UserError(f"{path} has nothing to hold out: give more records, or a valid.jsonl.")
    return HeldoutData(batches, config.document_mask)
