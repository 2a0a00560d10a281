"""The grid of a sweep: a TOML file that names shapes, sizes, tokens and seeds, read into points.

recipe = "tiny"                       # its first stage trains every point
set = ["model.vocab_size=512"]        # as --set of `mobilemoe train`

[[grids]]                             # all combinations of what the lists hold
E = [1, 2, 4]                         # expert equivalents; E = k is the dense model
k = [1]
g = [8]
shared = [true]
sizes = [[64, 1], [64, 2]]            # hidden size, layers
tokens = [200_000, 400_000]
seeds = [0]                           # of the initial weights
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.accounting.cost import Accounting, account
from mobilemoe_mlx.config import GROUP_SIZE, ModelArgs
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.scaling.shape import (
    FEED_FORWARD_RATIO,
    SHARED_UNITS,
    Shape,
    can_share,
    fits_groups,
)
from mobilemoe_mlx.train.recipe import Recipe, StageConfig, load_recipe, recipes_folder

Counts = Annotated[tuple[tables.Count, ...], tables.NOT_EMPTY]


@dataclass(frozen=True)
class Grid:
    """One table of the file: all combinations of its values."""

    E: Counts
    sizes: Annotated[tuple[tuple[tables.Count, ...], ...], tables.NOT_EMPTY]
    tokens: Counts
    k: Counts = (1,)
    g: Counts = (8,)
    shared: Annotated[tuple[bool, ...], tables.NOT_EMPTY] = (True,)
    seeds: Annotated[tuple[tables.CountOrZero, ...], tables.NOT_EMPTY] = (0,)


@dataclass(frozen=True)
class GridFile:
    """The whole file."""

    grids: Annotated[tuple[Grid, ...], tables.NOT_EMPTY]
    recipe: tables.Text = "tiny"
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """One training run of a sweep."""

    shape: Shape
    tokens: int
    seed: int

    @property
    def name(self) -> str:
        """What its files are called; different points have different ones."""
        shape = self.shape
        kind = "dense" if shape.is_dense else f"g{shape.g}{'-shared' if shape.shared else ''}"
        size = f"{shape.hidden_size}x{shape.layers}"
        return f"E{shape.E}-k{shape.k}-{kind}-{size}-{self.tokens}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.shape}, {self.tokens:,} tokens, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A grid whose every point can be trained."""

    name: str
    recipe: Recipe  # with one stage
    points: tuple[Point, ...]  # in the file's order, each once

    @property
    def stage(self) -> str:
        """The stage that every point is trained through."""
        return next(iter(self.recipe.stages))

    def args(self, point: Point) -> ModelArgs:
        """The model of a point."""
        return point.shape.model_args(self.recipe.model)

    def costs(self, point: Point) -> Accounting:
        """What the model of a point costs, at the context that it is trained on."""
        return account(self.args(point), self.recipe.stages[self.stage].data.context)

    def flops(self, point: Point) -> int:
        """Training FLOPs, backward twice as many as forward."""
        return 3 * self.costs(point).flops_per_token * point.tokens

    def recipe_of(self, point: Point) -> Recipe:
        """The recipe that trains a point."""
        return dataclasses.replace(
            self.recipe,
            model=self.args(point),
            stages={self.stage: _stage_of(self.recipe.stages[self.stage], point)},
        )


def read_plan(path: Path | str) -> Plan:
    """Read a grid file, or one of this package's by its name.

    Raises UserError, naming the file, for a misspelt key, a recipe that cannot be read, and for
    values that contradict one another: nothing is trained of a grid that has such.
    """
    path = _find(path)
    content = files.read_toml(path)
    try:
        grid = tables.read(GridFile, content)
        return _plan(path, grid)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _find(name: Path | str) -> Path:
    path = files.user_path(name)
    own = recipes_folder() / "sweeps"
    if path.exists() or path.parent != Path():
        return path
    if (own / f"{path.stem}.toml").is_file():
        return own / f"{path.stem}.toml"
    known = sorted(each.stem for each in own.glob("*.toml"))
    raise UserError(
        f"There is no grid {name}{did_you_mean(path.stem, known)}: give a file, or one of "
        f"{', '.join(known)}."
    )


def _plan(path: Path, file: GridFile) -> Plan:
    beside = files.user_path(file.recipe, path.parent)
    recipe = load_recipe(
        path.parent / beside if (path.parent / beside).is_file() else beside, file.set
    )
    stage = next(iter(recipe.stages))
    recipe = dataclasses.replace(recipe, stages={stage: recipe.stages[stage]})
    if recipe.stages[stage].epochs:
        raise UserError(f"{stage} of {file.recipe} gives epochs, and a sweep's points have tokens.")
    if not recipe.stages[stage].data.heldout:
        raise UserError(
            f"{stage} of {file.recipe} has no held-out data, whose loss a sweep records: name some "
            "with data.heldout."
        )
    found: dict[Point, None] = {}
    for number, grid in enumerate(file.grids):
        for point in _points(grid, f"grids[{number}]"):
            found[point] = None
    plan = Plan(path.stem, recipe, tuple(found))
    for point in plan.points:
        _check(plan, point)
    _check_constant(plan)
    return plan


def _points(grid: Grid, where: str) -> Iterator[Point]:
    for size in grid.sizes:
        if len(size) != 2:
            raise UserError(f"{where}.sizes has {list(size)}: give [hidden size, layers].")
    for (hidden, layers), tokens, E, k, g, shared, seed in itertools.product(
        grid.sizes, grid.tokens, grid.E, grid.k, grid.g, grid.shared, grid.seeds
    ):
        if k > E:
            raise UserError(f"{where}: k = {k} of E = {E} expert equivalents cannot be active.")
        if k == E:  # dense, whatever the granularity
            yield Point(Shape(E, k, 1, False, hidden, layers), tokens, seed)
            continue
        if shared and not can_share(k, g):
            raise UserError(
                f"{where}: g = {g} with k = {k} has {g * k} active experts, and a shared one takes "
                f"the place of {SHARED_UNITS}, which leaves none to select: give shared = [false] "
                "to a [[grids]] of its own for such g."
            )
        yield Point(Shape(E, k, g, shared, hidden, layers), tokens, seed)


def _check(plan: Plan, point: Point) -> None:
    """Raise UserError where a point's model or its training cannot be."""
    head_dim = plan.recipe.model.head_dim
    if point.shape.hidden_size % head_dim:
        raise UserError(
            f"{point}: the hidden size is no multiple of the recipe's head_dim, {head_dim}."
        )
    if not point.shape.is_dense and not fits_groups(point.shape.hidden_size, point.shape.g):
        raise UserError(
            f"{point}: g = {point.shape.g} does not split the dense layer's width, "
            f"{FEED_FORWARD_RATIO * point.shape.hidden_size}, into experts of whole INT4 groups of "
            f"{GROUP_SIZE}."
        )
    try:
        plan.args(point)
        _stage_of(plan.recipe.stages[plan.stage], point).check(plan.stage)
    except UserError as error:
        raise UserError(f"{point}: {error}") from None


def _check_constant(plan: Plan) -> None:
    """Raise UserError where shapes of one size differ in what is active, routers left out."""
    of_size: dict[Any, dict[int, Point]] = {}
    for point in plan.points:
        size = point.shape.hidden_size, point.shape.layers
        of_size.setdefault(size, {}).setdefault(point.shape.k, point)
    for (hidden, layers), by_k in of_size.items():
        if len(by_k) > 1:
            active = [
                f"{plan.costs(point).active_parameters:,} with k = {k}" for k, point in by_k.items()
            ]
            raise UserError(
                f"{layers} layers of {hidden} have {' and '.join(active)} active parameters, and a "
                "sweep compares shapes of equally many: give one k to each size."
            )


def _stage_of(stage: StageConfig, point: Point) -> StageConfig:
    return dataclasses.replace(stage, tokens=point.tokens)
