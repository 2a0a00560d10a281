"""What speaks against a fit: rows that should not be fitted together, laws that make no sense."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mobilemoe_mlx.scaling.fit import COEFFICIENTS, Fit
from mobilemoe_mlx.scaling.results import Row

_STEEP = 3.0  # the paper's largest exponent is 1.06


def mixed_families(rows: Sequence[Row]) -> list[str]:
    """A sentence where rows of several granularities, or with and without a shared expert, are
    fitted as if neither mattered."""
    families = sorted({row.family for row in rows if not row.is_dense})
    if len(families) < 2:
        return []
    names = ", ".join(
        f"g = {g:g} {'with' if s else 'without'} a shared expert" for g, s in families
    )
    return [f"rows of {names} are fitted as if these were alike: choose with --g and --shared."]


def doubts(fitted: Fit, rows: Sequence[Row]) -> list[str]:
    """Sentences about a law that the rows do not bear out."""
    law = fitted.law
    losses = np.array([row.loss for row in rows])
    active = np.array([row.active for row in rows])
    tokens = np.array([row.tokens for row in rows])
    experts = np.array([row.experts for row in rows])
    said = []
    spread = float(losses.std())
    if law.rmse >= 0.9 * spread:
        said.append(
            f"the law's error, {law.rmse:.4g}, is no less than the spread of the losses, "
            f"{spread:.4g}: it says no more than their mean."
        )
    steep = [
        f"{name} = {value:.4g}"
        for name in COEFFICIENTS
        if name not in ("A", "B", "c") and abs(value := getattr(law, name)) > _STEEP
    ]
    if steep:
        said.append(
            f"{', '.join(steep)}: exponents that large follow the noise of these rows, and the law "
            "means nothing beyond them."
        )
    gradient = law.gradient(active, tokens, experts)
    for name, slopes in (("active parameters", gradient.active), ("tokens", gradient.tokens)):
        rising = int(np.sum(slopes > 0))
        if rising:
            said.append(f"the fitted loss rises with more {name} at {rising} of {len(rows)} rows.")
    for name, term in zip(("size", "data"), law.terms(active, tokens, experts), strict=True):
        if np.ptp(term) < law.rmse:
            said.append(
                f"the term of the {name} changes less over the rows than the law's error: its "
                "coefficients mean nothing."
            )
    if law.c < 0.01 * losses.min():
        said.append("the floor c is next to nothing: these rows do not show one.")
    if len(rows) < 2 * fitted.parameters:
        said.append(
            f"{len(rows)} rows for {fitted.parameters} coefficients: the residuals say little."
        )
    return said
