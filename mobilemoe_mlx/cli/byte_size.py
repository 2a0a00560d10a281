"""Sizes in bytes as options take them: 500MB, 5GB, 1000000."""

from __future__ import annotations

import argparse
import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def byte_size(text: str) -> int:
    """The type of such an option; raises ArgumentTypeError for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is no size; write it like 500MB or 5GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
