"""How often the intervals of `mobilemoe scale fit` hold the coefficients behind made-up losses.

    python benchmarks/fit_coverage.py [--trials 20] [--noise 0.002 0.0076]

Makes losses of the paper's law on the paper's grid (90 points) with noise, fits, and prints for
each coefficient in how many trials the true value lies within its 95 % interval, with the median
width of the interval; and the error of the fitted losses against those without noise.
"""

from __future__ import annotations

import argparse

import numpy as np

from mobilemoe_mlx import text_table
from mobilemoe_mlx.scaling.fit import COEFFICIENTS, fit
from mobilemoe_mlx.scaling.law import PAPER
from mobilemoe_mlx.scaling.results import Row

GRID = [
    (n, d, e)
    for n in (0.3e9, 0.5e9, 0.9e9)
    for d in (100e9, 200e9, 300e9, 400e9, 500e9)
    for e in (1, 2, 4, 8, 16, 32)
]


def main() -> None:
    """Print a table for each noise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.002, 0.0076])
    args = parser.parse_args()
    true = np.array([PAPER.loss(*point) for point in GRID])
    for noise in args.noise:
        held = dict.fromkeys(COEFFICIENTS, 0)
        widths: dict[str, list[float]] = {name: [] for name in COEFFICIENTS}
        errors = []
        for trial in range(args.trials):
            measured = true + np.random.default_rng(trial).normal(0, noise, len(true))
            rows = [Row(*at, float(loss)) for at, loss in zip(GRID, measured, strict=True)]
            fitted = fit(rows, hold_out=0, seed=trial)
            for name, (low, high) in fitted.intervals.items():
                held[name] += low <= getattr(PAPER, name) <= high
                widths[name].append(high - low)
            predicted = np.array([fitted.law.loss(*at) for at in GRID])
            errors.append(float(np.sqrt(np.mean((predicted - true) ** 2))))
        print(f"noise {noise} nats per token, {args.trials} trials")
        cells = [["", "held", "true value", "median width"]]
        for name in COEFFICIENTS:
            cells.append(
                [
                    name,
                    f"{held[name]}/{args.trials}",
                    f"{getattr(PAPER, name):.4f}",
                    f"{np.median(widths[name]):.4f}",
                ]
            )
        print(text_table.columns(cells))
        print(f"error of the fitted losses: {np.median(errors):.5f} (median RMSE)\n")


if __name__ == "__main__":
    main()
