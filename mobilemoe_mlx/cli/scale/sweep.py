"""`mobilemoe scale sweep GRID`: train a grid of small models, for `scale fit`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mobilemoe_mlx import files, mlx_on_linux, text_table
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.errors import UserError

if TYPE_CHECKING:
    from mobilemoe_mlx.scaling.sweep_grid import Plan

SUMMARY = "train a grid of small models at equal active parameters, a row of results each"

EXAMPLES: tuple[str, ...] = ()  # minutes of training; docs/scaling.md has them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the task's arguments."""
    parser.add_argument("grid", help="quickstart, or a grid file of your own (docs/scaling.md)")
    parser.add_argument(
        "--run",
        metavar="FOLDER",
        help="of the sweep; it goes on where it stands, and several processes may share it "
        "(default: runs/sweep- and the grid's name)",
    )
    parser.add_argument(
        "--plan", action="store_true", help="say what would be trained, and do no more"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the task; after a signal, returns 130 or 143 with everything saved."""
    check_json(args.json)
    if args.run is not None:
        files.output_folder(args.run)
    if advice := mlx_on_linux.prepare():
        print(f"mobilemoe: {advice}", file=sys.stderr)
    from mobilemoe_mlx.scaling.sweep import sweep
    from mobilemoe_mlx.scaling.sweep_grid import read_plan
    from mobilemoe_mlx.train.signals import Stopped

    with _of_a_grid():
        plan = read_plan(args.grid)
    output = sys.stderr if prints_json(args.json) else sys.stdout
    if args.plan:
        print(_table(plan), file=output)
        write_json(args.json, [each.name for each in plan.points])
        return 0

    def say(text: str) -> None:
        print(text, file=output, flush=True)

    folder = args.run or f"runs/sweep-{plan.name}"
    try:
        with _of_a_grid():
            results = sweep(plan, folder, say=say)
    except Stopped as stopped:
        again = shlex.join(["mobilemoe", "scale", "sweep", args.grid, "--run", folder])
        say(f"Stopped; what was trained is saved. Go on with:\n  {again}")
        return stopped.exit_status
    say(f"The results are in {results}. Next:\n  mobilemoe scale fit {shlex.quote(str(results))}")
    rows = files.read_text(results).splitlines() if results.is_file() else []
    write_json(args.json, [files.parse_json(row, str(results)) for row in rows])
    return 0


@contextlib.contextmanager
def _of_a_grid() -> Iterator[None]:
    """What is wrong with a recipe is told with the option of `mobilemoe train` that mends it."""
    try:
        yield
    except UserError as error:
        if "--set " not in str(error):
            raise
        raise UserError(f'{error} What --set takes goes into the grid\'s set = ["..."].') from None


def _table(plan: Plan) -> str:
    """The points, and what they take."""
    rows = [["", "tokens", "seed", "active", "total", "training FLOPs"]]
    for point in plan.points:
        costs = plan.costs(point)
        rows.append(
            [
                str(point.shape),
                f"{point.tokens:,}",
                str(point.seed),
                f"{costs.active_parameters:,}",
                f"{costs.total_parameters:,}",
                f"{plan.flops(point):.2g}",
            ]
        )
    total = sum(map(plan.flops, plan.points))
    return f"{text_table.columns(rows)}\n{len(plan.points)} points, {total:.2g} training FLOPs."
