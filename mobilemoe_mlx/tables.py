"""Typed tables: what TOML and JSON files hold, read into dataclasses; a misspelt key is an error.

A field's annotation says what it accepts: `bool`, `int`, `float` (whole numbers too, always
finite), `str`, `Literal[...]`, `tuple[X, ...]` (a list; a single string for `tuple[str, ...]`),
`dict[str, X]`, `X | None`, another dataclass (a nested table) or `Any`.
`Annotated[int, Bounds(least=1)]` and `Annotated[str, NOT_EMPTY]` narrow it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.finite_number import is_finite_number

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """The numbers that a field accepts."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def check(self, number: float, where: str) -> None:
        """Raise UserError naming `where` when `number` lies outside."""
        if math.isfinite(self.least) and math.isfinite(self.most):
            if not self.least <= number <= self.most:
                raise UserError(
                    f"{where} is {number}; it must be in {self.least:g}..{self.most:g}."
                )
        elif not number >= self.least:
            raise UserError(f"{where} is {number}; it must be >= {self.least:g}.")
        elif not number <= self.most:
            raise UserError(f"{where} is {number}; it must be <= {self.most:g}.")
        if not number > self.above:
            raise UserError(f"{where} is {number}; it must be above {self.above:g}.")
        if not number < self.below:
            raise UserError(f"{where} is {number}; it must be below {self.below:g}.")


class _NotEmpty:
    """The mark of a string or list that must not be empty."""


NOT_EMPTY = _NotEmpty()

Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(least=0)]
Fraction = Annotated[float, Bounds(least=0, most=1)]
Count = Annotated[int, Bounds(least=1)]
CountOrZero = Annotated[int, Bounds(least=0)]
Text = Annotated[str, NOT_EMPTY]

TOO_LARGE = 2**63  # for whole numbers: what arrays and files can count

_KIND = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_PLURAL = {str: "strings", int: "whole numbers", float: "numbers", bool: "true or false"}


def read(cls: type[T], table: Any, where: str = "", **given: Any) -> T:
    """Read a table into the dataclass `cls`.

    `where` is the table's dotted path in messages (empty: the file itself). `given`: fields that do
    not stand in the table. Raises UserError naming the key, its value and what it must be; for an
    unknown key, the nearest known one.
    """
    check_table(table, where)
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [f for f in dataclasses.fields(typing.cast(Any, cls)) if f.name not in given]
    check_fields(cls, table, [f.name for f in fields], where)
    for f in fields:
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in table:
            raise UserError(f"{_dotted(where, f.name)} is missing.")
    values = {key: read_value(hints[key], item, _dotted(where, key)) for key, item in table.items()}
    return cls(**values, **given)


def read_value(hint: Any, value: Any, where: str) -> Any:
    """Read one value as the annotation `hint` says; raises UserError naming `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = read_value(arguments[0], value, where)
        _check_marks(hint.__metadata__, value, where)
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not types.NoneType)
        return read_value(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(Any, hint), value, where)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            nearest = did_you_mean(value, arguments) if isinstance(value, str) else ""
            known = ", ".join(map(str, arguments))
            raise UserError(f"{where} is {value!r}{nearest}; it must be one of {known}.")
        return value
    if origin is tuple:
        return _read_list(arguments[0], value, where)
    if origin is dict:
        check_table(value, where)
        return {key: read_value(arguments[1], v, _dotted(where, key)) for key, v in value.items()}
    return _read_scalar(hint, value, where)


def check_table(table: Any, where: str) -> None:
    """Raise UserError when `table` is not a table (a dict)."""
    if not isinstance(table, dict):
        raise UserError(f"{where or 'the content'} must be a table, not {table!r}.")


def check_keys(table: Any, known: Iterable[str], where: str) -> None:
    """Raise UserError for the first key that is not `known`, with the nearest that is."""
    check_table(table, where)
    known = list(known)
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
            raise UserError(f"{f'{where} has' if where else 'there is'} no key '{key}'{hint}.")


def check_fields(cls: type, table: Any, known: Iterable[str], where: str = "") -> None:
    """The same for `known` fields of dataclass `cls`; a key of an inner table is named there."""
    known = list(known)
    hints = typing.get_type_hints(cls)
    inner = {
        field.name: _dotted(where, f"{name}.{field.name}")
        for name in known
        for kind in (hints[name], *typing.get_args(hints[name]))
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        for field in dataclasses.fields(kind)
    }
    check_table(table, where)
    for key in table:
        if key not in known and key in inner:
            what = f"{where} has" if where else "there is"
            raise UserError(f"{what} no key '{key}' (did you mean '{inner[key]}'?).")
    check_keys(table, known, where)


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    value = _converted(kind, value)
    if type(value) is int and kind in (int, float) and abs(value) >= TOO_LARGE:
        raise UserError(f"{where} is {value}; it must be a smaller number.")
    if type(value) is not kind:
        raise UserError(f"{where} is {value!r}; it must be {_KIND[kind]}.")
    if kind is float and not is_finite_number(value):
        raise UserError(f"{where} is {value}; it must be finite.")
    return value


def _converted(kind: Any, value: Any) -> Any:
    if kind is float and type(value) is int and is_finite_number(value):
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)  # 6e12 is a float in TOML
    return value


def _read_list(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if kind is str and isinstance(value, str):
        value = [value]
    good = isinstance(value, list | tuple)
    if good and kind in _PLURAL:
        good = all(type(_converted(kind, item)) is kind for item in value)
    if not good:
        wanted = _PLURAL.get(kind, "tables")
        raise UserError(f"{where} is {value!r}; it must be a list of {wanted}.")
    return tuple(read_value(hint, item, f"{where}[{i}]") for i, item in enumerate(value))


def _check_marks(marks: Iterable[Any], value: Any, where: str) -> None:
    for mark in marks:
        if isinstance(mark, Bounds):
            mark.check(value, where)
        elif mark is NOT_EMPTY and not value:
            raise UserError(f"{where} is {value!r}; it must not be empty.")


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
