"""A run that is made longer: it goes on from its last checkpoint towards more steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.recipe import FinetuneConfig
from mobilemoe_mlx.train.recipe import FINETUNE
from mobilemoe_mlx.train.run_folder import RunFolder

_LENGTH = ("epochs", "steps", "tokens")  # in a run's record


@dataclass(frozen=True)
class Continued:
    """How a run goes on. `since`: the step at which it was made longer, now or before, if it was;
    `before`: the length that it had until now, if it is made longer now."""

    config: FinetuneConfig
    since: int | None = None
    before: Mapping[str, Any] | None = None

    def comparable(self, stage: dict[str, Any]) -> dict[str, Any]:
        """A stage's record as it was before the run is made longer."""
        return stage if self.before is None else {**stage, **self.before}


def continued(folder: RunFolder, config: FinetuneConfig) -> Continued:
    """`config`, whose steps are counted, as the run in `folder` goes on with it.

    The warm-up stays that of the length which the run began with. Raises UserError for fewer steps
    than it had, and for more where no checkpoint is left to go on from.
    """
    saved = folder.record().get("stages", {}).get(FINETUNE)
    if saved is None or "steps" not in saved:
        return Continued(config)
    stage, steps = folder.stage(FINETUNE), int(saved["steps"])
    if config.steps < steps:
        raise UserError(
            f"{folder.path} holds a run of {steps:,} steps, and {config.steps:,} are asked for: a "
            "run can be made longer, not shorter. Give its own length, or another folder with "
            "--run."
        )
    since = saved.get("longer_since")
    if config.steps == steps and since is None:
        return Continued(config)
    optimizer = dataclasses.replace(
        config.optimizer, warmup_steps=int(saved["optimizer"]["warmup_steps"])
    )
    config = dataclasses.replace(config, optimizer=optimizer)
    if config.steps == steps:
        return Continued(config, since)
    if not stage.step:
        raise UserError(
            f"{folder.path} has no checkpoint left to go on from, so it cannot be made longer: "
            "train what it left further in another folder with --run."
        )
    return Continued(config, stage.step, {name: saved[name] for name in _LENGTH})


def keep_result(folder: RunFolder) -> Path | None:
    """Move what a finished run left aside, under a name with its steps; returns its new place."""
    stage = folder.stage(FINETUNE)
    if not stage.is_finished:
        return None
    kept = stage.result.with_name(f"{stage.result.name}-of-step-{stage.step}")
    stage.result.rename(kept)
    return kept
