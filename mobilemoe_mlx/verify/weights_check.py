"""The comparison of an export's weights with the checkpoint's, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WeightsCheck:
    """What was compared, and every constant that is not what it should be."""

    tensors: int  # of the checkpoint
    nbytes: int
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all weights are the checkpoint's."""
        return not self.problems


def byte_differences(actual: np.ndarray, expected: np.ndarray) -> list[str]:
    """What is wrong with the bytes `actual` (uint8), which should be those of `expected`."""
    wanted = np.ascontiguousarray(expected).reshape(-1).view(np.uint8)
    if actual.size != wanted.size:
        return [f"has {actual.size} bytes, the checkpoint {wanted.size}"]
    differing = np.flatnonzero(actual != wanted)
    if not differing.size:
        return []
    return [f"{differing.size} of {wanted.size} bytes differ, the first at {differing[0]}"]
