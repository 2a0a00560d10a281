"""Parameters and tokens are asked for in plain counts; the law's own formula takes billions."""

from __future__ import annotations

from mobilemoe_mlx.errors import UserError

_LEAST = 1e6  # parameters or tokens; less means that billions were typed as such


def check_plain_count(option: str, number: float, fitted_on: tuple[float, float]) -> None:
    """Raise UserError for a number that can only be meant in billions.

    `fitted_on`: the least and the most of the law, since one of small models may be asked for such.
    """
    if 0 < number < min(_LEAST, fitted_on[0] / 10):
        raise UserError(f"{option} {number:g} is below a million: give plain counts, as 300M.")
