"""Figures as JSON can hold them."""

from __future__ import annotations

import math
from typing import Any


def json_values(content: Any) -> Any:
    """`content` with null in place of each number that is not finite, which JSON has no word for.

    The reports say by themselves which values were not finite.
    """
    if isinstance(content, dict):
        return {name: json_values(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [json_values(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
