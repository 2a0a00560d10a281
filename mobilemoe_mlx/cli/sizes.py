"""Large numbers as options take them: bytes as 500MB or 5GB, counts as 300M, 6T or 0.3e9."""

from __future__ import annotations

import argparse
import math
import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_NUMBER = r"(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*"


def byte_size(text: str) -> int:
    """The type of an option in bytes; raises ArgumentTypeError for other texts."""
    match = re.fullmatch(_NUMBER + r"([KMGT]?)B?", text.strip(), re.IGNORECASE)
    return int(_value(match, text, "no size; write it like 500MB, 5GB or 5e9"))


def count(text: str) -> float:
    """The type of an option that counts parameters, tokens or FLOPs; B is a billion, as G is.

    Raises ArgumentTypeError for other texts.
    """
    match = re.fullmatch(_NUMBER + r"([KMBGT]?)", text.strip(), re.IGNORECASE)
    return _value(match, text, "no number; write it like 300M, 6T or 0.3e9")


def _value(match: re.Match[str] | None, text: str, why: str) -> float:
    value = math.inf if match is None else float(match[1]) * _UNITS[match[2].upper()]
    if match is None or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is {why}")
    return value
