"""Sweeps of a very small family: planned, killed, shared by two processes, and refused."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from training_fixtures import environment, mobilemoe

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.scaling.results import of_family, read_rows
from mobilemoe_mlx.scaling.sweep import sweep
from mobilemoe_mlx.scaling.sweep_grid import Plan, read_plan
from mobilemoe_mlx.train.run import train

pytestmark = pytest.mark.usefixtures("datasets_cache")

# With k = 2 four experts of a quarter can be shared: hidden 32 is too narrow for eighths.
GRID = """
recipe = "{recipe}"
set = ["pretrain.checkpoint_every=1", "pretrain.routing.capacity_factor=1"]
[[grids]]
E = [2, 4]
k = [2]
g = [4]
shared = [true, false]
sizes = [[32, 1], [32, 2]]
tokens = [512]
"""
NAMES = [
    f"E{E}-k2-{kind}-32x{layers}-512-seed0"
    for layers in (1, 2)
    for E, kind in ((2, "dense"), (4, "g4-shared"), (4, "g4"))
]


@pytest.fixture(scope="module")
def grid(recipe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "grid.toml"
    path.write_text(GRID.format(recipe=recipe_path))
    return path


@pytest.fixture(scope="module")
def plan(grid: Path) -> Plan:
    return read_plan(grid)


@pytest.fixture(scope="module")
def swept(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that nothing interrupted."""
    folder = tmp_path_factory.mktemp("swept") / "run"
    assert sweep(plan, folder) == folder / "results.jsonl"
    return folder


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> row, but for the time that it took."""
    rows = {path.stem: json.loads(path.read_text()) for path in (folder / "rows").iterdir()}
    for row in rows.values():
        assert row.pop("seconds") > 0
    return rows


def test_points(plan: Plan) -> None:
    """Each once, a dense model once for all granularities; as many active parameters."""
    assert [point.name for point in plan.points] == NAMES
    for point in plan.points:
        args = plan.args(point)
        routers = args.num_hidden_layers * args.num_local_experts * 33  # weights and biases
        dense = plan.costs(plan.points[0 if point.shape.layers == 1 else 3])
        assert plan.costs(point).active_parameters - routers == dense.active_parameters


def test_rows(plan: Plan, swept: Path) -> None:
    """Of the format that `fit` reads; what a point costs is what its configuration costs."""
    rows = rows_of(swept)
    assert {*rows} == {*NAMES}
    for point in plan.points:
        row, costs = rows[point.name], account(plan.args(point), 32)
        assert (row["active"], row["total"]) == (costs.active_parameters, costs.total_parameters)
        assert (row["tokens"], row["experts"]) == (512, point.shape.E / 2)
        assert ("dead_experts" in row) is not point.shape.is_dense
        assert 0 < row.get("dropped", 0.5) < 1 and ("dropped" in row) is not point.shape.is_dense
        assert 3 < row["loss"] < 6.2  # after four steps below ln 480, which is chance
    read = read_rows(swept / "results.jsonl")
    assert len(read) == 6 and len(of_family(read, 4, True)) == 4
    with pytest.raises(UserError, match="there are g = 4 without a shared expert, g = 4 with"):
        of_family(read, 8, None)
    assert not list((swept / "points").iterdir())
    assert {path.stem for path in (swept / "metrics").iterdir()} == {*NAMES}


def test_a_loss_is_that_of_the_same_training(plan: Plan, swept: Path, tmp_path: Path) -> None:
    """By `train` alone; the dense model that it leaves is loaded."""
    point = plan.points[0]
    folder = train(plan.recipe_of(point), tmp_path / "run", seed=0, say=lambda _: None)
    metrics = (swept / "metrics" / f"{point.name}.jsonl").read_text().splitlines()
    mine = (folder.parent / "metrics.jsonl").read_text().splitlines()
    losses = [[json.loads(x).get("loss") for x in lines] for lines in (metrics, mine)]
    assert losses[0] == losses[1]
    args = load_model(folder).args
    # What the tokenizer says of its control tokens is added when a model is trained.
    changed = {"bos_token_id": args.bos_token_id, "eos_token_id": args.eos_token_id}
    assert args == dataclasses.replace(plan.args(point), **changed)


def test_finished_points_are_not_trained_again(plan: Plan, swept: Path) -> None:
    said: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in (swept / "rows").iterdir()}
    sweep(plan, swept, say=said.append)
    assert said == ["6 points, 6 of them finished, 0 training FLOPs to go."]
    assert {path: path.stat().st_mtime_ns for path in (swept / "rows").iterdir()} == before


def test_killed_and_shared(
    plan: Plan, grid: Path, swept: Path, cache: Path, tmp_path: Path
) -> None:
    """kill -9 in the middle of a point; then two processes at once, each point once."""
    run = tmp_path / "run"
    command = mobilemoe("scale", "sweep", grid, "--run", run)
    quiet = {"env": environment(cache), "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **quiet)
    while process.poll() is None and not list(run.glob("points/*/*/checkpoints/step-00000002")):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = {path.stem for path in run.glob("rows/*")}
    assert len(before) < 6
    other = subprocess.Popen(command, stdout=subprocess.PIPE, **quiet)
    said: list[str] = []
    sweep(plan, run, say=said.append)
    theirs = other.communicate(timeout=300)[0]
    assert other.returncode == 0
    done = [line for line in (*said, *theirs.splitlines()) if line.startswith("[")]
    assert len(done) == 6 - len(before)
    assert rows_of(run) == rows_of(swept)


def test_a_point_that_fails_does_not_stop_the_others(
    plan: Plan, swept: Path, tmp_path: Path
) -> None:
    stage = plan.recipe.stages["pretrain"]
    hot = dataclasses.replace(stage, optimizer=dataclasses.replace(stage.optimizer, peak_lr=1e38))
    broken = dataclasses.replace(plan.recipe, stages={"pretrain": hot})
    plan = dataclasses.replace(plan, recipe=broken, points=plan.points[:2])
    with pytest.raises(UserError, match=r"2 of the 2 points .* The first: E=2, k=2, dense."):
        sweep(plan, tmp_path / "run")
    with pytest.raises(UserError, match=r"another recipe \(training.optimizer.peak_lr was "):
        sweep(plan, swept)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("g = [4]", "g = [4, 2]", r"grids\[0\]: g = 2 with k = 2 has 4 active experts, and a sha"),
        ("E = [2, 4]", "E = [1, 4]", r"grids\[0\]: k = 2 of E = 1 expert equivalents"),
        ("k = [2]", "k = [2, 1]", r"k = 1 has 4 active experts"),
        (
            "g = [4]",
            "g = [8]",
            "g=8, shared, 1 layers of 32.*g = 8 does not split the dense layer's width, 128",
        ),
        ("[[32, 1]", "[[40, 1]", "40.*no multiple of the recipe's head_dim, 16"),
        ("[[32, 1]", "[[32]", r"grids\[0\].sizes has \[32\]: give \[hidden size, layers\]"),
        ("[512]", "[256]", "warmup_steps .2. leaves nothing of the stage's 2 steps"),
        ("[512]", "[]", r"grids\[0\].tokens is \(\); it must not be empty"),
        ("[512]", "[0]", r"grids\[0\].tokens\[0\] is 0"),
        ("tokens", "token", "no key 'token' .did you mean 'tokens'"),
        ('set = ["', 'set = ["data.heldout=[]", "', "pretrain of .* has no held-out data"),
        ('set = ["', 'set = ["pretrain.epochs=1", "', "gives epochs"),
    ],
)
def test_contradictions(grid: Path, tmp_path: Path, old: str, new: str, told: str) -> None:
    text = grid.read_text()
    assert old in text
    path = tmp_path / "grid.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=told) as refused:
        read_plan(path)
    assert str(refused.value).startswith(str(path))


def test_experts_make_up_the_dense_layer(grid: Path, tmp_path: Path) -> None:
    """35 experts of 32 are 1,120 wide, not 1,152: less would be active than in the dense model."""
    path = tmp_path / "grid.toml"
    text = grid.read_text().replace("shared = [true, false]", "shared = [false]")
    path.write_text(text.replace("[[32, 1]", "[[288, 1]").replace("g = [4]", "g = [35]"))
    with pytest.raises(UserError, match="g = 35 does not split the dense layer's width, 1152"):
        read_plan(path)


def test_one_size_has_one_k(grid: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    text = grid.read_text().replace("shared = [true, false]", "shared = [false]")
    path.write_text(text.replace("k = [2]", "k = [1, 2]"))
    with pytest.raises(UserError, match=r"1 layers of 32 have [\d,]+ with k = 1 and .* k = 2"):
        read_plan(path)


def test_folders_of_others(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a sweep"):
        sweep(plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("grid", "data"),
    [
        ("quickstart", "sweep"),
        ("quickstart-lower-rate", "sweep-lower-rate"),
        ("quickstart-longer", "sweep-longer"),
    ],
)
def test_the_rows_of_the_documents_are_of_their_grid(grid: str, data: str) -> None:
    plan = read_plan(grid)
    path = Path(__file__).parents[2] / "docs" / "data" / f"{data}.jsonl"
    rows = [json.loads(x) for x in path.read_text().splitlines() if x and not x.startswith("#")]

    asked = []
    for point in plan.points:
        costs, stage = plan.costs(point), plan.recipe_of(point).stages["pretrain"]
        tokens = stage.steps * stage.batch_size * stage.data.context
        asked.append((costs.active_parameters, costs.total_parameters, tokens, point.seed))
    trained = [(row["active"], row["total"], row["tokens"], row["seed"]) for row in rows]
    assert sorted(asked) == sorted(trained)


def test_the_grid_of_this_package() -> None:
    """Three sizes by three numbers of tokens for every E, every g, and two seeds at the centre."""
    points = read_plan("quickstart").points
    law = {
        (p.shape.E, p.shape.hidden_size, p.shape.layers, p.tokens)
        for p in points
        if p.shape.is_dense or p.shape.shared
    }
    assert len(law) == 5 * 3 * 3
    centre = [p for p in points if (p.shape.layers, p.tokens) == (2, 200_000)]
    assert len(centre) == 2 * (5 + 4 * 4)
