"""What one op is tried on, and what it must give; the cases themselves are in mil_*_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

FLOATS = ("float16", "float32")


@dataclass(frozen=True)
class Case:
    """One op on arrays, and what it must give for them as float64 (or exact) arrays."""

    name: str
    arrays: dict[str, np.ndarray]
    build: Callable[..., Any]  # of the arrays' variables
    expected: Callable[..., Any]
    # Error of the float32 arithmetic inside, as a multiple of 2^-24 x the largest |expected|: a
    # few roundings for elementwise ops; n terms' worth for a sum of n (with room for cancellation).
    inside: float = 8
    inferable: bool = True  # False: coremltools' own evaluation of it is wrong or fails
    results: tuple[str, ...] = ("result",)


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


def integers(low: int, high: int, *shape: int, dtype: str = "int32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).integers(low, high, shape).astype(dtype)


def t(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
