"""What a recipe would train: its model's size, and every stage's data and steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import text_table
from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.train.recipe import STAGE_TITLES, Recipe, StageConfig, load_recipe


@dataclass(frozen=True)
class RecipeInfo:
    """A recipe as it stands in its file, without overrides."""

    path: Path
    recipe: Recipe

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        recipe = self.recipe
        return {
            "path": str(self.path),
            "name": recipe.name,
            "tokenizer": recipe.tokenizer or None,
            "config": recipe.model.to_dict(),
            **dataclasses.asdict(account(recipe.model)),
            "stages": {
                name: {**dataclasses.asdict(stage), "steps": _steps(stage)}
                for name, stage in recipe.stages.items()
            },
        }

    def text(self) -> str:
        """For people: the model, then a column for each stage."""
        recipe, sizes = self.recipe, account(self.recipe.model)
        head = {
            "recipe": f"{self.path.name}, {recipe.name}",
            "layers / hidden size": (
                f"{recipe.model.num_hidden_layers} / {recipe.model.hidden_size}"
            ),
            "active / total parameters": (
                f"{text_table.count(sizes.active_parameters)} / "
                f"{text_table.count(sizes.total_parameters)}"
            ),
            "tokenizer": recipe.tokenizer or "named on the command line, or the checkpoint's",
        }
        stages = recipe.stages.values()
        rows = [
            ["", *(STAGE_TITLES[name] for name in recipe.stages)],
            ["length", *(_length(stage) for stage in stages)],
            ["steps", *(f"{_steps(stage):,}" if stage.tokens else "" for stage in stages)],
            ["rows x context", *(f"{s.batch_size:,} x {s.data.context:,}" for s in stages)],
            ["peak learning rate", *(f"{stage.optimizer.peak_lr:g}" for stage in stages)],
            ["schedule", *(stage.optimizer.schedule for stage in stages)],
            ["weights", *("INT4" if stage.quantize else "float" for stage in stages)],
            ["mixture", *(Path(stage.data.mixture).stem for stage in stages)],
            ["held out", *(_names(stage.data.heldout) or "none" for stage in stages)],
        ]
        return f"{text_table.labelled(head)}\n\n{text_table.columns(rows)}"


def describe_recipe(path: Path) -> RecipeInfo:
    """Read a recipe file; raises UserError for whatever is wrong in it."""
    return RecipeInfo(path, load_recipe(path))


def _length(stage: StageConfig) -> str:
    return f"{stage.tokens:,} tokens" if stage.tokens else f"{stage.epochs:g} epochs"


def _steps(stage: StageConfig) -> int | None:
    """None where the length is in epochs: how many tokens they have is known with the data."""
    return stage.steps if stage.tokens else None


def _names(paths: tuple[str, ...]) -> str:
    return ", ".join(Path(path).name for path in paths)
