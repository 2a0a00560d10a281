"""adapter_config.json, ours or mlx-lm's: what it says, and that it does not contradict itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.adapters.base_digest import BaseDigest
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.adapters.training_record import TrainingRecord
from mobilemoe_mlx.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"  # an adapter's files
OWN = "mobilemoe"  # our own part, beside mlx-lm's


@dataclass(frozen=True)
class Settings:
    """What the file says. `rank`, `base` and `config`: None where it does not (mlx-lm's own)."""

    kind: str  # "lora" or "dora"
    scale: float
    rank: int | None
    base: BaseDigest | None = None
    config: AdapterConfig | None = None


def read_settings(path: Path) -> Settings:
    """Read the file; raises UserError naming it and what is wrong or contradicts itself."""
    content = files.read_json(path)
    try:
        tables.check_table(content, "")
        return _own(content) if OWN in content else _of_mlx_lm(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _own(content: dict[str, Any]) -> Settings:
    tables.check_table(content[OWN], OWN)
    own = dict(content[OWN])
    base = None
    if "base" in own:
        base = tables.read(BaseDigest, own.pop("base"), f"{OWN}.base")
    if "training" in own:
        tables.read(TrainingRecord, own.pop("training"), f"{OWN}.training")
    config = tables.read(AdapterConfig, own, OWN)
    _check_agrees(content, config)
    return Settings(config.kind, config.scale, config.rank, base, config)


def _of_mlx_lm(content: dict[str, Any]) -> Settings:
    kind = content.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UserError(
            f"fine_tune_type is {kind!r}; adapters are lora or dora"
            f"{' (a full fine-tune is a checkpoint: mlx_lm.fuse makes it)' * (kind == 'full')}."
        )
    settings: Any = content.get("lora_parameters")
    tables.check_table(settings, "lora_parameters")
    scale = tables.read_value(float, settings.get("scale"), "lora_parameters.scale")
    rank, alpha = settings.get("rank"), settings.get("alpha")
    rank = rank if isinstance(rank, int) else None
    if rank is not None and isinstance(alpha, int | float) and alpha != scale * rank:
        raise UserError(
            f"lora_parameters has the scale {scale:g}, but alpha / rank is {alpha:g} / {rank}: "
            "they contradict each other."
        )
    return Settings(kind, scale, rank)


def _check_agrees(content: dict[str, Any], config: AdapterConfig) -> None:
    """Raise UserError where mlx-lm's part of a configuration contradicts ours."""
    theirs: Any = content.get("lora_parameters")
    tables.check_table(theirs, "lora_parameters")
    expected = {"rank": config.rank, "scale": config.scale, "dropout": config.dropout}
    for name, value in expected.items():
        if theirs.get(name) != value:
            raise UserError(
                f"lora_parameters.{name} is {theirs.get(name)!r}, and by {OWN} (rank "
                f"{config.rank}, alpha {config.alpha:g}{', rslora' * config.rslora}) it is "
                f"{value:g}: they contradict each other."
            )
    if content.get("fine_tune_type") != config.kind:
        raise UserError(
            f"fine_tune_type is {content.get('fine_tune_type')!r}, and {OWN}.kind is "
            f"{config.kind!r}: they contradict each other."
        )
