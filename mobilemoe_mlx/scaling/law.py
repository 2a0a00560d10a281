"""The on-device scaling law of the paper (arXiv 2605.27358), with its published coefficients.

    L(N, D, Ê) = A Ê^delta N^(alpha + gamma ln Ê) + B Ê^omega D^(beta + zeta ln Ê) + c

L is the training loss in nats per token, N the active parameters and D the training tokens, both in
billions inside the formula; every function here takes plain counts. Ê is the effective number of
experts (arXiv 2202.01169), which saturates:

    1/Ê = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max

E counts experts in equivalents of the dense feed-forward layer, whatever their granularity: a model
of 64 experts of an eighth of that layer each has E = 8, and a dense model has E = 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.errors import UserError

BILLION = 1e9

Numbers = Any  # a number or a numpy array of them; the result is of the same kind


@dataclass(frozen=True)
class Range:
    """What a law was fitted on, least and most of each; beyond, it extrapolates."""

    active: tuple[float, float]  # parameters per token
    tokens: tuple[float, float]
    experts: tuple[float, float]  # in equivalents

    def outside(self, active: float, tokens: float, experts: float) -> list[str]:
        """A sentence for each number that lies outside; none: nothing is extrapolated."""
        asked = {
            "active parameters": (active, self.active),
            "tokens": (tokens, self.tokens),
            "experts": (experts, self.experts),
        }
        return [
            f"{name}: {value:.4g} lies outside what the law was fitted on, "
            f"{least:.4g} to {most:.4g}: this is an extrapolation."
            for name, (value, (least, most)) in asked.items()
            if not least * (1 - 1e-9) <= value <= most * (1 + 1e-9)
        ]


@dataclass(frozen=True)
class Gradient:
    """Partial derivatives of the loss, in nats per token."""

    active: Numbers  # per active parameter
    tokens: Numbers  # per training token
    experts: Numbers  # per expert


@dataclass(frozen=True)
class Law:
    """The law with its coefficients, named as in the formula above."""

    A: float
    delta: float
    alpha: float
    gamma: float
    B: float
    omega: float
    beta: float
    zeta: float
    c: float  # nats per token that no size and no number of tokens takes away
    fitted_on: Range
    rmse: float  # of the fit, nats per token: differences below it mean nothing
    experts_start: float = 1.0
    experts_max: float = 32.0

    def loss(self, active: Numbers, tokens: Numbers, experts: Numbers) -> Numbers:
        """The predicted loss in nats per token; arguments broadcast.

        `active`: parameters used per token, embedding included; `tokens`: training tokens;
        `experts`: E. All are plain counts. Raises UserError unless active and tokens are positive
        and experts is at least 1. Says nothing of extrapolation: that is `outside`.
        """
        by_size, by_data = self.terms(active, tokens, experts)
        return by_size + by_data + self.c

    def terms(self, active: Numbers, tokens: Numbers, experts: Numbers) -> tuple[Numbers, Numbers]:
        """What more active parameters, and what more tokens, would take away; as in `loss`."""
        by_size, by_data = self._terms(*self._logs(active, tokens, experts))
        kind = (active, tokens, experts)
        return _like(*kind, by_size), _like(*kind, by_data)

    def gradient(self, active: Numbers, tokens: Numbers, experts: Numbers) -> Gradient:
        """The exact partial derivatives of `loss`; arguments and errors as there."""
        n, d, e = self._logs(active, tokens, experts)
        by_size, by_data = self._terms(n, d, e)
        per_log_e = by_size * (self.delta + self.gamma * n) + by_data * (self.omega + self.zeta * d)
        kind = (active, tokens, experts)
        return Gradient(
            active=_like(*kind, by_size * (self.alpha + self.gamma * e) / np.asarray(active)),
            tokens=_like(*kind, by_data * (self.beta + self.zeta * e) / np.asarray(tokens)),
            experts=_like(*kind, per_log_e * self._log_effective_slope(experts)),
        )

    def effective_experts(self, experts: Numbers) -> Numbers:
        """Ê for E experts; raises UserError below one."""
        if not np.all(np.asarray(experts, float) >= 1):
            raise UserError(
                f"{_first_below(experts, 1 - 1e-12):g} experts: a dense model has 1, no less."
            )
        start = 1 / (1 / self.experts_start - 1 / self.experts_max)
        effective = 1 / (1 / (np.asarray(experts, float) - 1 + start) + 1 / self.experts_max)
        return _like(experts, effective)

    def outside(self, active: float, tokens: float, experts: float) -> list[str]:
        """A sentence for each argument that the law was not fitted on (see `Range.outside`)."""
        return self.fitted_on.outside(active, tokens, experts)

    def to_dict(self) -> dict[str, Any]:
        """Coefficients, range and error as plain JSON, which `read_law` takes."""
        return dataclasses.asdict(self)

    def _logs(self, active: Numbers, tokens: Numbers, experts: Numbers) -> tuple[Any, Any, Any]:
        for name, values in (("active parameters", active), ("tokens", tokens)):
            if not np.all(np.asarray(values, float) > 0):
                raise UserError(f"{_first_below(values, 0):g} {name}: more than none are needed.")
        return (
            np.log(np.asarray(active, float) / BILLION),
            np.log(np.asarray(tokens, float) / BILLION),
            np.log(self.effective_experts(experts)),
        )

    def _terms(self, n: Any, d: Any, e: Any) -> tuple[Any, Any]:
        """The term of the size and that of the data, from ln N, ln D (billions) and ln Ê."""
        with np.errstate(over="ignore"):  # infinite, far from what a steep law was fitted on
            by_size = self.A * np.exp(self.delta * e + (self.alpha + self.gamma * e) * n)
            by_data = self.B * np.exp(self.omega * e + (self.beta + self.zeta * e) * d)
        return by_size, by_data

    def _log_effective_slope(self, experts: Numbers) -> Any:
        """d ln Ê / dE, which is Ê / (E - 1 + start)²."""
        start = 1 / (1 / self.experts_start - 1 / self.experts_max)
        return self.effective_experts(experts) / (np.asarray(experts, float) - 1 + start) ** 2


def read_law(path: Path | str) -> Law:
    """The law in what `scale fit --json FILE` wrote; raises UserError for another file."""
    path = files.user_path(path)
    record = files.read_json(path)
    if not isinstance(record, dict) or "law" not in record:
        raise UserError(
            f"{path} is not what `mobilemoe scale fit --json FILE` writes: no law in it."
        )
    law = tables.read(Law, record["law"], f"{path}: law")
    for name, span in dataclasses.asdict(law.fitted_on).items():
        if len(span) != 2 or not 0 < span[0] <= span[1]:
            raise UserError(f"{path}: law.fitted_on.{name} must be the least and the most.")
    if not 0 < law.experts_start < law.experts_max:
        raise UserError(
            f"{path}: law.experts_start is {law.experts_start:g} and law.experts_max "
            f"{law.experts_max:g}; both must be above 0, the second the larger."
        )
    for name in ("A", "B", "c", "rmse"):
        if not getattr(law, name) >= 0:
            raise UserError(f"{path}: law.{name} is {getattr(law, name):g}; it must be >= 0.")
    return law


def _like(*arguments: Any) -> Any:
    """The last argument as a float where none of the others is an array."""
    *given, values = arguments
    result: npt.NDArray[np.float64] = np.asarray(values, float)
    return result if any(isinstance(each, np.ndarray) for each in given) else float(result)


def _first_below(values: Numbers, least: float) -> float:
    array = np.atleast_1d(np.asarray(values, float))
    return float(array[~(array > least)][0])


# The paper's fit over E (its tables were read at second hand; the loss and optimiser of the fit are
# not known). N: 0.3, 0.5 and 0.9 billion; D: 100 to 500 billion; E: 1, 2, 4, 8, 16, 32.
PAPER = Law(
    A=0.2388,
    delta=0.0906,
    alpha=-0.2833,
    gamma=0.0387,
    B=0.6019,
    omega=1.0593,
    beta=-0.3210,
    zeta=-0.3684,
    c=1.9730,
    fitted_on=Range(active=(0.3e9, 0.9e9), tokens=(100e9, 500e9), experts=(1, 32)),
    rmse=0.0076,
)
