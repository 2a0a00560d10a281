"""All ops that the evaluator knows, by MIL name (it handles states and constants itself)."""

from __future__ import annotations

from mobilemoe_mlx.mil.ops import elementwise, shape, sums
from mobilemoe_mlx.mil.ops.base import Operator

OPERATORS: dict[str, Operator] = {
    value.name: value
    for family in (elementwise, shape, sums)
    for value in vars(family).values()
    if isinstance(value, Operator)
}
