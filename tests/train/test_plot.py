"""The pictures of a run."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train.plot import plot_run
from mobilemoe_mlx.train.recipe import STAGES

image = pytest.importorskip("matplotlib.image")


def write_metrics(run: Path, stage: str, steps: int, load: bool = True, heldout: bool = True):
    """A made-up stage whose loss falls and whose first expert of the first layer is overloaded."""
    rng = np.random.default_rng(len(stage))
    rows: list[dict[str, Any]] = [{"step": 0, "heldout_loss": 5.0}] if heldout else []
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 4 / step + rng.random() / 10}
        if load and step in (10, steps):
            shares = np.full((3, 6), 1 / 6)
            shares[0] = [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
            row["load"] = shares.tolist()
        rows.append(row)
    (run / stage).mkdir(parents=True)
    lines = [json.dumps(row) for row in rows]
    (run / stage / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 99, "lo')  # cut off


def colours(path: Path) -> int:
    """How many colours a picture has."""
    pixels = image.imread(path)
    return len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0))


def test_a_run_has_two_pictures(tmp_path: Path):
    for stage in STAGES:
        write_metrics(tmp_path, stage, 25, heldout=stage != "midtrain")
    losses, load = plot_run(tmp_path)
    assert (losses, load) == (tmp_path / "losses.png", tmp_path / "expert-load.png")
    for path in (losses, load):
        assert path.read_bytes().startswith(b"\x89PNG")
        height, width, _ = image.imread(path).shape
        assert height >= 400 and width >= 800
    assert colours(losses) > 100  # four curves, light and dark
    assert colours(load) > 100


def test_a_full_disk_is_told_with_the_picture(tmp_path: Path, monkeypatch, capsys):
    write_metrics(tmp_path, "sft", 12)
    before = {path.name for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mobilemoe_mlx.files.os.fsync", full)
    assert main(["plot", str(tmp_path)]) == 2
    assert "expert-load.png could not be written (No space left" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_heat_map_shows_the_overloaded_expert(tmp_path: Path):
    write_metrics(tmp_path, "sft", 12)
    _, path = plot_run(tmp_path)
    pixels = image.imread(path)[..., :3]
    red = (pixels[..., 0] > 0.3) & (pixels[..., 1] < 0.1) & (pixels[..., 2] < 0.2)
    rows, columns = np.nonzero(red[:, : int(0.8 * red.shape[1])])  # left of the colour bar
    # 3 times the mean: dark red in the first of six columns, in the upper third.
    assert len(rows) > 1000
    assert columns.max() - columns.min() < pixels.shape[1] / 5
    assert columns.max() < pixels.shape[1] / 3 and rows.max() < 0.6 * pixels.shape[0]


def test_a_run_that_has_just_begun_has_its_losses(tmp_path: Path):
    write_metrics(tmp_path, "pretrain", 3, load=False)
    assert plot_run(tmp_path, tmp_path / "pictures") == [tmp_path / "pictures" / "losses.png"]
    assert colours(tmp_path / "pictures" / "losses.png") > 20


def test_the_command(tmp_path: Path, capsys):
    write_metrics(tmp_path, "pretrain", 12)
    assert main(["plot", str(tmp_path)]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in printed] == ["losses.png", "expert-load.png"]
    assert all(path.stat().st_size > 5000 for path in printed)


def test_nothing_to_draw(tmp_path: Path, capsys):
    with pytest.raises(UserError, match="holds no metrics of a training run"):
        plot_run(tmp_path / "nowhere")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 0, "heldout_loss": 5.0}\n')
    assert main(["plot", str(tmp_path)]) == 2
    assert "holds no metrics" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sft"]


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch):
    write_metrics(tmp_path, "pretrain", 3)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install"):
        plot_run(tmp_path)
