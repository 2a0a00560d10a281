"""Typed tables: every annotation takes its values and refuses the others by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tables import Count, Fraction, Positive, Text, read


@dataclass(frozen=True)
class Inner:
    rate: Positive
    kind: Literal["round", "square"] = "round"


@dataclass(frozen=True)
class Outer:
    name: Text
    inner: Inner
    count: Count = 1
    share: Fraction = 0.5
    on: bool = False
    scale: float | None = None
    files: tuple[Text, ...] = ()
    sizes: tuple[Count, ...] = ()
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    anything: Any = None


GOOD: dict[str, Any] = {"name": "x", "inner": {"rate": 1}}


def test_defaults_and_nested_tables() -> None:
    assert read(Outer, GOOD) == Outer("x", Inner(1.0))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("count", 3e2, 300),
        ("share", 1, 1.0),
        ("scale", None, None),
        ("scale", 2, 2.0),
        ("files", "one", ("one",)),
        ("files", ["a", "b"], ("a", "b")),
        ("sizes", [1, 2.0], (1, 2)),
        ("many", [{"rate": 2}], (Inner(2.0),)),
        ("by_name", {"a": {"rate": 2, "kind": "square"}}, {"a": Inner(2.0, "square")}),
        ("anything", [1, None], [1, None]),
    ],
)
def test_values_are_read_as_annotated(key: str, value: Any, expected: Any) -> None:
    found = getattr(read(Outer, {**GOOD, key: value}), key)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "x"}, "t has no key 'nmae' (did you mean 'name'?)."),
        ({"inner": {"rat": 1}}, "t.inner has no key 'rat' (did you mean 'rate'?)."),
        ({"many": [{"rate": 1}, {"rate": 0}]}, "t.many[1].rate is 0.0; it must be above 0."),
        ({"by_name": {"a": 5}}, "t.by_name.a must be a table, not 5."),
        ({"inner": [1]}, "t.inner must be a table, not [1]."),
        ({"inner": {}}, "t.inner.rate is missing."),
        ({"name": ""}, "t.name is ''; it must not be empty."),
        ({"name": 5}, "t.name is 5; it must be a text."),
        ({"name": None}, "t.name is None; it must be a text."),
        ({"count": True}, "t.count is True; it must be a whole number."),
        ({"count": 1.5}, "t.count is 1.5; it must be a whole number."),
        ({"count": 2**63}, "t.count is 9223372036854775808; it must be a smaller number."),
        ({"count": "1"}, "t.count is '1'; it must be a whole number."),
        ({"count": 0}, "t.count is 0; it must be >= 1."),
        ({"share": 1.5}, "t.share is 1.5; it must be in 0..1."),
        ({"share": False}, "t.share is False; it must be a number."),
        ({"scale": float("inf")}, "t.scale is inf; it must be finite."),
        ({"scale": 10**400}, f"t.scale is {10**400}; it must be a smaller number."),
        ({"count": 1e308}, f"t.count is {int(1e308)}; it must be a smaller number."),
        ({"on": 1}, "t.on is 1; it must be true or false."),
        ({"files": 5}, "t.files is 5; it must be a list of strings."),
        ({"files": ["a", 5]}, "t.files is ['a', 5]; it must be a list of strings."),
        ({"files": ["a", ""]}, "t.files[1] is ''; it must not be empty."),
        ({"sizes": [1, 0]}, "t.sizes[1] is 0; it must be >= 1."),
        ({"sizes": [True]}, "t.sizes is [True]; it must be a list of whole numbers."),
        ({"many": {"rate": 1}}, "t.many is {'rate': 1}; it must be a list of tables."),
        (
            {"inner": {"rate": 1, "kind": "squere"}},
            "t.inner.kind is 'squere' (did you mean 'square'?); it must be one of round, square.",
        ),
    ],
)
def test_other_values_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(Outer, {**GOOD, **changes}, "t")
    assert str(error.value) == message


def test_a_given_field_is_no_key_of_the_table() -> None:
    assert read(Inner, {"rate": 1}, kind="square") == Inner(1.0, "square")
    with pytest.raises(UserError, match="there is no key 'kind'"):
        read(Inner, {"rate": 1, "kind": "square"}, kind="square")
