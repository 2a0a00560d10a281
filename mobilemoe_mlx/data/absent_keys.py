"""Rows of tables, in which a key that one record has and another has not comes as null."""

from __future__ import annotations

from typing import Any

_TEXTS = ("content", "value")  # of a message: null is an empty one


def without_absent_keys(value: Any) -> Any:
    """`value` without the keys, however deep, whose values are null; a row's own fields stay.

    Tables have the same columns in every row, so an absent "tool_calls", or the arguments of
    another tool, come as nulls, which chat templates would write.
    """
    if not isinstance(value, dict):
        return value
    return {key: _dense(inner) for key, inner in value.items()}


def _dense(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _dense(v) for k, v in value.items() if v is not None or k in _TEXTS}
    if isinstance(value, list):
        return [_dense(item) for item in value]
    return value
