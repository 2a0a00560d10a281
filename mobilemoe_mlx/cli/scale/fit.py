"""`mobilemoe scale fit RESULTS`: a law from measured losses."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mobilemoe_mlx import text_table
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.scale.pictures_option import (
    add_pictures_argument,
    check_pictures,
    write_pictures,
)

if TYPE_CHECKING:
    from mobilemoe_mlx.scaling.fit import Fit

SUMMARY = "a law from measured losses (JSON Lines), with intervals, held-out error and rival forms"

EXAMPLES: tuple[str, ...] = ()  # it needs results, which a sweep writes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the task's arguments."""
    parser.add_argument(
        "results", help="a run a line: active, tokens, experts, loss (docs/scaling.md)"
    )
    parser.add_argument(
        "--form",
        default="joint",
        help="joint (the paper's), size interaction, data interaction, no interaction or dense",
    )
    parser.add_argument(
        "--bootstrap", type=int, default=200, metavar="DRAWS", help="for the intervals (200)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--g", type=float, metavar="N", help="only rows of this granularity, and dense ones"
    )
    parser.add_argument(
        "--shared",
        choices=("yes", "no"),
        help="only rows with a shared expert, or without, and dense ones",
    )
    add_pictures_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the task."""
    check_json(args.json)
    check_pictures(args.pictures)
    from mobilemoe_mlx.scaling.fit import compare_forms, fit
    from mobilemoe_mlx.scaling.fit_doubts import doubts, mixed_families
    from mobilemoe_mlx.scaling.results import of_family, read_rows

    every = read_rows(args.results)
    rows = of_family(every, args.g, {"yes": True, "no": False, None: None}[args.shared])
    fitted = fit(rows, args.form, bootstrap=args.bootstrap, seed=args.seed)
    others = compare_forms(rows, fitted, seed=args.seed)
    notes = [*mixed_families(rows), *doubts(fitted, rows)]
    record = {**fitted.to_dict(), "notes": notes}
    record["forms"] = {
        name: each
        if isinstance(each, str)
        else {"rmse": each.law.rmse, "held_out_rmse": each.held_out_rmse, "bic": each.bic}
        for name, each in others.items()
    }

    def draw() -> dict[str, bytes]:
        from mobilemoe_mlx.scaling.measured_pictures import of_rows
        from mobilemoe_mlx.scaling.pictures import of_fit

        return {**of_fit(fitted, rows), **of_rows(every, rows, fitted.law)}

    record["pictures"] = write_pictures(args.pictures, draw)
    write_json(args.json, record)
    if not prints_json(args.json):
        said = [f"Note: {each}" for each in notes]
        print("\n".join([_text(fitted, others), *said, *record["pictures"]]))


def _coefficient(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.1e}"


def _text(fitted: Fit, others: dict[str, Fit | str]) -> str:
    from mobilemoe_mlx.scaling.fit import COEFFICIENTS

    rows = [["", "fitted", "95 % of the bootstrap"]]
    for name in COEFFICIENTS:
        ends = fitted.intervals.get(name)  # none without a bootstrap
        interval = "-" if ends is None else " to ".join(map(_coefficient, ends))
        rows.append([name, _coefficient(getattr(fitted.law, name)), interval])
    lines = [f"{fitted.rows} rows, form '{fitted.form}'.", text_table.columns(rows), ""]
    forms = [["form", "RMSE", "held out", "BIC"]]
    for name, each in others.items():
        if isinstance(each, str):
            continue
        out = "-" if each.held_out_rmse is None else f"{each.held_out_rmse:.4f}"
        forms.append([name, f"{each.law.rmse:.4f}", out, f"{each.bic:.1f}"])
    lines.append(text_table.columns(forms))
    lines += [f"{name}: {each}" for name, each in others.items() if isinstance(each, str)]
    spans = {
        "active parameters": fitted.law.fitted_on.active,
        "tokens": fitted.law.fitted_on.tokens,
        "experts": fitted.law.fitted_on.experts,
    }
    within = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in spans.items())
    held_out = (
        f"; held out: the {fitted.held_out_rows} runs with the most training FLOPs"
        if fitted.held_out_rmse is not None
        else ""
    )
    return "\n".join([*lines, f"Fitted on {within}{held_out}."])
