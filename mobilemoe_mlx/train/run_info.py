"""What a training run's folder holds: how far each stage is, its losses, its disk space."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train import state
from mobilemoe_mlx.train.disk_space import bytes_in
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import FINETUNE, STAGE_TITLES, STAGES
from mobilemoe_mlx.train.run_folder import RunFolder, StageFolder


@dataclass(frozen=True)
class StageInfo:
    """One stage of a run. Losses are nats a target."""

    stage: str
    finished: bool
    steps: int  # recorded in the metrics
    planned_steps: int
    ended_early: bool  # by the recipe's patience, before the planned steps
    loss: float | None  # of the last step
    heldout: list[tuple[int, float]]  # step, loss
    dead_experts: int | None  # without a token at the last step, over all layers
    # Share of the choices that had no room at the last step; None: dropless, or not recorded.
    dropped: float | None
    sources: Mapping[str, Any]  # what was read, as of the last record
    checkpoints: list[int]  # their steps
    model: str | None  # or adapter: the folder that the stage left
    bytes: int  # on disk


@dataclass(frozen=True)
class RunInfo:
    """A run's folder, stage by stage in the order they run."""

    path: Path
    name: str  # of the recipe
    stages: list[StageInfo]
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {**asdict(self), "path": str(self.path)}

    def text(self) -> str:
        """For people."""
        lines = [
            f"training run {self.path} of the recipe {self.name}, {text_table.size(self.bytes)}"
        ]
        for stage in self.stages:
            lines += ["", *_lines(stage)]
        return "\n".join(lines)


def is_run(path: Path) -> bool:
    """True for the folder of a training run."""
    return RunFolder(path).record_file.is_file()


def describe_run(path: Path | str) -> RunInfo:
    """Read the folder of a training run. Raises UserError for another folder."""
    run = RunFolder(files.user_path(path))
    if not is_run(run.path):
        raise UserError(f"{run.path} is not the folder of a training run: it has no recipe.json.")
    record = run.read_record()
    stages = [
        _describe(name, run.stage(name), record["stages"][name])
        for name in (*STAGES, FINETUNE)
        if name in record["stages"]
    ]
    return RunInfo(run.path, str(record.get("name", "")), stages, bytes_in(run.path))


def _describe(name: str, folder: StageFolder, config: Mapping[str, Any]) -> StageInfo:
    rows = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    steps = [row for row in rows if "loss" in row]
    dead = steps[-1].get("dead_experts") if steps else None
    dropped = steps[-1].get("dropped") if steps else None
    rows_per_step = config["batch_size"] * config["data"]["context"]
    sources: list[Mapping[str, Any]] = [row["sources"] for row in rows if "sources" in row]
    planned = math.ceil(config["tokens"] / rows_per_step)
    may_end_early = folder.is_finished and bool(config.get("patience")) and bool(steps)
    return StageInfo(
        stage=name,
        finished=folder.is_finished,
        steps=len(steps),
        planned_steps=planned,
        ended_early=may_end_early and steps[-1]["step"] < planned,
        loss=steps[-1]["loss"] if steps else None,
        heldout=[(row["step"], row["heldout_loss"]) for row in rows if "heldout_loss" in row],
        dead_experts=int(sum(dead)) if dead is not None else None,
        dropped=statistics.fmean(dropped) if dropped else None,
        sources=sources[-1] if sources else {},
        checkpoints=[state.step_of(path) for path in state.all_checkpoints(folder.checkpoints)],
        model=str(folder.result) if folder.is_finished else None,
        bytes=bytes_in(folder.path),
    )


def _lines(stage: StageInfo) -> list[str]:
    how = "finished" if stage.finished else "not finished" if stage.steps else "not begun"
    steps = f"{stage.steps:,} of {stage.planned_steps:,} steps"
    if stage.ended_early:
        steps += ", when the held-out loss fell no longer"
    elif stage.finished and stage.steps < stage.planned_steps:
        steps = f"{stage.planned_steps:,} steps, of which {stage.steps:,} are recorded"
    lines = [f"{STAGE_TITLES[stage.stage]}: {how}, {steps}"]
    if stage.loss is not None:
        lines.append(f"  training loss      {stage.loss:.4f} at the last step")
    if stage.heldout:
        (first, before), (last, after) = stage.heldout[0], stage.heldout[-1]
        later = f", {after:.4f} at step {last:,} ({len(stage.heldout)} evaluations)"
        lines.append(
            f"  held-out loss      {before:.4f} at step {first:,}{later if last > first else ''}"
        )
    if stage.dead_experts is not None:
        lines.append(f"  experts, no token  {stage.dead_experts} at the last step")
    if stage.dropped is not None:
        lines.append(f"  choices dropped    {stage.dropped:.1%} at the last step")
    for name, counts in stage.sources.items():
        skipped = sum(counts["skipped"].values())
        lines.append(
            f"  read of {name}: {counts['records']:,} records, {counts['tokens']:,} tokens, "
            f"{counts['epochs']:,} whole epochs, {skipped:,} left out, {counts['truncated']:,} cut"
        )
    if stage.checkpoints:
        steps = ", ".join(f"{step:,}" for step in stage.checkpoints)
        lines.append(f"  checkpoints        of step {steps}")
    if stage.model:
        lines.append(f"  {Path(stage.model).name:<19}{stage.model}")
    lines.append(f"  on disk            {text_table.size(stage.bytes)}")
    return lines
