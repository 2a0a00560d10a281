"""How much of the disk a run will take, before it takes it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mobilemoe_mlx import text_table
from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train.recipe import StageConfig
from mobilemoe_mlx.train.run_folder import RunFolder

_CHECKPOINT_BYTES_PER_PARAMETER = 12  # float32: the weight and AdamW's two moments


@dataclass(frozen=True)
class DiskSpace:
    """Bytes that a run's stages will take at most, and what there is."""

    checkpoint: int  # one checkpoint
    checkpoints: int  # as many as are kept, over all stages
    models: int  # the stages' finished models
    present: int  # what the stages hold already
    free: int

    @property
    def needed(self) -> int:
        """Bytes still to be written; a checkpoint is complete before an older one goes."""
        return self.checkpoints + self.checkpoint + self.models - self.present

    def text(self) -> str:
        """One sentence for the start of a run."""
        return (
            f"checkpoints of {text_table.size(self.checkpoint)} and models take up to "
            f"{text_table.size(self.checkpoints + self.models)}, "
            f"{text_table.size(self.free)} are free"
        )

    def check(self, run: Path) -> None:
        """Raise UserError when the disk lacks the space."""
        if self.needed > self.free:
            raise UserError(
                f"{run} needs up to {text_table.size(self.needed)} more (checkpoints of "
                f"{text_table.size(self.checkpoint)} each, the finished models), and the disk has "
                f"{text_table.size(self.free)} free: make room, choose a folder on another disk "
                "with --run, or keep fewer checkpoints with `--set keep_checkpoints=1`."
            )


def disk_space(run: RunFolder, stages: Mapping[str, StageConfig], args: ModelArgs) -> DiskSpace:
    """What the unfinished `stages` of `run` will take."""
    sizes = account(args)
    checkpoint = _CHECKPOINT_BYTES_PER_PARAMETER * sizes.total_parameters
    kept = sum(min(stage.keep_checkpoints, stage.steps + 1) for stage in stages.values())
    return DiskSpace(
        checkpoint=checkpoint,
        checkpoints=kept * checkpoint,
        models=sum(
            sizes.int4_bytes if stage.quantize else sizes.bf16_bytes for stage in stages.values()
        ),
        present=sum(bytes_in(run.stage(name).checkpoints) for name in stages),
        free=shutil.disk_usage(existing(run.path)).free,
    )


def bytes_in(folder: Path) -> int:
    """The size of all files in a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def existing(path: Path) -> Path:
    """The folder itself or, where it is yet to be made, the nearest above it."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
