"""The models that the paper compares with each other: their configs and scores (published.toml)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.accounting.architecture import Architecture, mobilemoe
from mobilemoe_mlx.accounting.families import read_architecture
from mobilemoe_mlx.config import PRESETS

_FILE = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class PublishedModel:
    """One model of the comparison; it has a preset's name or the fields of its config.json."""

    name: str
    score: float  # mean of the paper's fourteen base benchmarks, per cent
    preset: str | None = None
    config: dict[str, Any] | None = None
    int4_score: float | None = None  # `score` after quantization-aware training
    sft_score: float | None = None  # mean of the benchmarks of instruction-tuned models, per cent
    benchmarks: dict[str, float] = field(default_factory=dict)  # by name, per cent

    @property
    def architecture(self) -> Architecture:
        """What its cost is counted from."""
        if self.preset is not None:
            return mobilemoe(PRESETS[self.preset])
        return read_architecture(self.config or {}, f"{_FILE.name}: {self.name}")


@dataclass(frozen=True)
class _File:
    models: tuple[PublishedModel, ...]


@functools.cache
def published_models() -> dict[str, PublishedModel]:
    """Name -> model, in the order of the file."""
    return {each.name: each for each in tables.read(_File, files.read_toml(_FILE)).models}
