"""Losses of the paper's law on the paper's grid, with noise: what a fit should find again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mobilemoe_mlx.scaling.law import PAPER
from mobilemoe_mlx.scaling.results import Row

ACTIVE = (0.3e9, 0.5e9, 0.9e9)
TOKENS = tuple(np.arange(1, 6) * 100e9)
EXPERTS = (1, 2, 4, 8, 16, 32)


def rows(noise: float, seed: int = 0) -> list[Row]:
    """A row for each point; `noise`: standard deviation, nats per token."""
    random = np.random.default_rng(seed)
    return [
        Row(n, float(d), e, float(PAPER.loss(n, d, e) + random.normal(0, noise)))
        for n in ACTIVE
        for d in TOKENS
        for e in EXPERTS
    ]


def write(path: Path, given: list[Row]) -> Path:
    """The rows as a results file."""
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in given))
    return path
