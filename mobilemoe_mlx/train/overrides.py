"""Overrides of a recipe's values from the command line: "KEY=VALUE" with a dotted key."""

from __future__ import annotations

import tomllib
from typing import Any

from mobilemoe_mlx.errors import UserError


def parse_override(override: str) -> tuple[list[str], Any]:
    """The parts of the dotted key, none empty, and the value: TOML, or a bare word as a string.

    Raises UserError where `override` is not of the form KEY=VALUE.
    """
    key, separator, text = override.partition("=")
    keys = key.strip().split(".")
    if not separator or not all(keys):
        raise UserError(f"the override '{override}' is not of the form KEY=VALUE.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    return keys, value


def set_in_table(table: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    """Set the value at the key `keys` of a table, making tables on the way.

    Raises UserError, naming the `override`, for the key of a table and for one inside a value.
    """
    if not keys:
        raise UserError(f"the override '{override}' names a whole table, not a value in it.")
    for part in keys[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"the override '{override}': {part} is a value, not a table.")
    table[keys[-1]] = value
