"""L-BFGS in numpy, from many starts at once: each row of an array is a minimisation of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# Rows of parameters [starts, parameters] and their numbers [starts] -> values [starts] and
# gradients [starts, parameters]. The numbers say which of the first starts the rows belong to.
Objective = Callable[[Array, npt.NDArray[np.int64]], tuple[Array, Array]]

_MEMORY = 10  # pairs of steps and changes of gradient that are kept
_SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo)
_HALVINGS = 30
_PATIENCE = 5  # steps on end that lower next to nothing


def minimise(
    objective: Objective, starts: Array, *, steps: int = 500, tolerance: float = 1e-9
) -> tuple[Array, Array]:
    """The points [starts, parameters] that are reached, and their values [starts].

    A row ends where its gradient's largest entry is below `tolerance`, where some steps on end
    lower it by no more than that share of it, or after `steps`. Rows do not depend on each other.
    """
    points = np.array(starts, float)
    rows, size = points.shape
    values, gradients = objective(points, np.arange(rows))
    steps_kept = np.zeros((_MEMORY, rows, size))
    changes = np.zeros((_MEMORY, rows, size))
    weights = np.zeros((_MEMORY, rows))  # 1 / (step · change); 0: nothing is kept there
    stalls = np.zeros(rows, int)
    active = np.arange(rows)[np.abs(gradients).max(axis=1) > tolerance]
    for turn in range(steps):
        if not len(active):
            break
        kept = [(turn - back) % _MEMORY for back in range(1, min(turn, _MEMORY) + 1)]
        direction = -_inverse_hessian(
            gradients[active],
            [(steps_kept[i][active], changes[i][active], weights[i][active]) for i in kept],
        )
        slopes = np.sum(direction * gradients[active], axis=1)
        uphill = slopes >= 0
        direction[uphill] = -gradients[active][uphill]
        slopes[uphill] = -np.sum(gradients[active][uphill] ** 2, axis=1)
        if turn == 0:  # nothing is known of the scale yet
            direction /= np.maximum(1, np.abs(direction).max(axis=1))[:, None]
            slopes = np.sum(direction * gradients[active], axis=1)
        moved, at, value, gradient = _step(objective, points, values, active, direction, slopes)
        place = turn % _MEMORY
        weights[place] = 0
        step, change = at - points[moved], gradient - gradients[moved]
        curvature = np.sum(step * change, axis=1)
        curved = curvature > 1e-12 * np.sum(step**2, axis=1)
        steps_kept[place][moved], changes[place][moved] = step, change
        weights[place][moved] = np.where(curved, 1 / np.where(curved, curvature, 1), 0)
        lowered = values[moved] - value > tolerance * np.abs(values[moved])
        stalls[moved] = np.where(lowered, 0, stalls[moved] + 1)
        going = (stalls[moved] < _PATIENCE) & (np.abs(gradient).max(axis=1) > tolerance)
        points[moved], values[moved], gradients[moved] = at, value, gradient
        active = moved[going]
    return points, values


def _inverse_hessian(gradients: Array, kept: list[tuple[Array, Array, Array]]) -> Array:
    """The two loops over the pairs that are kept, the newest first in `kept`."""
    result, alphas = gradients.copy(), []
    for step, change, weight in kept:
        alpha = weight * np.sum(step * result, axis=1)
        result -= alpha[:, None] * change
        alphas.append(alpha)
    if kept:
        step, change, weight = kept[0]
        squares = np.sum(change**2, axis=1) * weight
        result *= np.where(squares > 0, 1 / np.where(squares > 0, squares, 1), 1)[:, None]
    for (step, change, weight), alpha in zip(reversed(kept), reversed(alphas), strict=True):
        beta = weight * np.sum(change * result, axis=1)
        result += (alpha - beta)[:, None] * step
    return result


def _step(
    objective: Objective,
    points: Array,
    values: Array,
    active: npt.NDArray[np.int64],
    direction: Array,
    slopes: Array,
) -> tuple[npt.NDArray[np.int64], Array, Array, Array]:
    """Halve the steps until they lower enough; which rows moved, where to, values and gradients."""
    length = 1.0
    waiting = np.arange(len(active))
    found: list[tuple[npt.NDArray[np.int64], Array, Array, Array]] = []
    for _ in range(_HALVINGS):
        rows = active[waiting]
        at = points[rows] + length * direction[waiting]
        value, gradient = objective(at, rows)
        finite = np.isfinite(value) & np.all(np.isfinite(gradient), axis=1)
        good = finite & (value <= values[rows] + _SUFFICIENT * length * slopes[waiting])
        good &= value < values[rows]  # not where rounding makes both equal
        found.append((rows[good], at[good], value[good], gradient[good]))
        waiting = waiting[~good]
        if not len(waiting):
            break
        length /= 2
    moved, at, value, gradient = (np.concatenate(part) for part in zip(*found, strict=True))
    return moved, at, value, gradient
