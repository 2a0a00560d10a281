"""What a recipe of fine-tuning says, as it stands in its file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.config import preset
from mobilemoe_mlx.finetune.recipe import FinetuneConfig, load_finetune_recipe


@dataclass(frozen=True)
class FinetuneRecipeInfo:
    """A recipe without overrides; what it leaves to the base is that of S on a GPU."""

    path: Path
    config: FinetuneConfig

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {"path": str(self.path), **dataclasses.asdict(self.config)}

    def text(self) -> str:
        """For people."""
        config = self.config
        length = f"{config.epochs:g} epochs" if config.epochs else f"{config.steps:,} steps"
        cells = {
            "recipe": f"{self.path.name}, fine-tuning by {config.method}",
            "length": length,
            "rows x context": f"{config.batch_size} x {config.data.context:,}",
            "peak learning rate": f"{config.optimizer.peak_lr:g}",
            "loss on": config.data.loss_on,
            "router and balancing": "trained" if config.routing.train else "frozen",
        }
        if (adapter := config.adapter) is not None:
            cells["adapters"] = (
                f"rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(adapter.modules)}"
            )
        if (choice := config.experts) is not None:
            cells["experts"] = (
                f"as many as take {choice.share:.0%} of the use, by {choice.use}, in each layer"
            )
        return text_table.labelled(cells)


def is_finetune_recipe(path: Path) -> bool:
    """True for a TOML file that is a recipe of fine-tuning."""
    return "method" in files.read_toml(path)


def describe_finetune_recipe(path: Path) -> FinetuneRecipeInfo:
    """Read a recipe of fine-tuning; raises UserError naming what is wrong in it."""
    packed = files.read_toml(path).get("method") == "qlora"
    args = dataclasses.replace(preset("S"), quantized=packed)
    return FinetuneRecipeInfo(path, load_finetune_recipe(path, None, [], args, on_cpu=False))
