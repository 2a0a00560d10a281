"""All ops that the evaluator knows, by MIL name (states and constants are its own business)."""

from __future__ import annotations

from mobilemoe_mlx.verify import mil_ops_elementwise, mil_ops_shape, mil_ops_sums
from mobilemoe_mlx.verify.mil_ops_base import Operator

OPERATORS: dict[str, Operator] = {
    value.name: value
    for family in (mil_ops_elementwise, mil_ops_shape, mil_ops_sums)
    for value in vars(family).values()
    if isinstance(value, Operator)
}
