"""`mobilemoe scale`: its tasks, their JSON and pictures, and mistakes in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import synthetic_losses

from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.config import PRESETS


def scale(capsys: pytest.CaptureFixture[str], line: str) -> str:
    assert main(["scale", *line.split()]) == 0, capsys.readouterr()
    return capsys.readouterr().out


def record(capsys: pytest.CaptureFixture[str], line: str) -> Any:
    return json.loads(scale(capsys, f"{line} --json"))


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_predict(capsys: pytest.CaptureFixture[str]) -> None:
    line = "predict --active 0.3e9 --tokens 500e9 --experts 8"
    found = record(capsys, line)
    assert found["loss"] == pytest.approx(2.3458, abs=1e-4)
    assert found["by_size"] + found["by_data"] + found["floor"] == pytest.approx(found["loss"])
    assert found["warnings"] == []
    assert "2.3458" in scale(capsys, line)
    assert "2.3458" in scale(capsys, "predict --active 300M --tokens 0.5T --experts 8")
    assert "this is an extrapolation" in scale(capsys, "predict --active 3e8 --tokens 6e12")


def test_design(capsys: pytest.CaptureFixture[str]) -> None:
    line = "design --like S --tokens 300e9 --k 1"
    found = record(capsys, line)
    assert found["best"]["config"] == PRESETS["S"].to_dict()
    assert found["like"]["loss"] == found["best"]["loss"]
    assert "S lies 0.00% above the best" in scale(capsys, line)
    without = record(capsys, f"{line} --shared no")["best"]
    assert without["shape"]["shared"] is False and without["loss"] > found["best"]["loss"]
    assert "* beyond what the law" in scale(capsys, line)
    fast = "design --memory 1e9 --device iphone16pro --tokens-per-second 30 --k 1 --g 8"
    assert record(capsys, fast)["best"]["tokens_per_second"] >= 30
    dense = scale(capsys, "design --memory 1e9 --experts 1 --k 1")
    assert "dense, of the width " in dense
    assert "dense, of the width" in scale(capsys, "design --memory 1GB --experts 1 --tokens 0.5T")


def test_fit_and_what_is_done_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic_losses.write(tmp_path / "runs.jsonl", synthetic_losses.rows(0.002))
    text = scale(capsys, "fit runs.jsonl --bootstrap 20 --json fit.json --pictures drawn")
    assert "95 % of the bootstrap" in text and "no interaction" in text
    assert "held out: the 18 runs" in text
    assert all(map(is_png, (tmp_path / "drawn").iterdir()))
    assert {path.stem for path in (tmp_path / "drawn").iterdir()} == {
        "predicted-against-measured",
        "residuals",
    }
    found = record(capsys, "predict --active 3e8 --tokens 500e9 --experts 8 --law fit.json")
    assert found["loss"] == pytest.approx(2.3458, abs=0.004)
    assert "lies outside" in scale(capsys, "predict --active 3e9 --tokens 5e11 --law fit.json")
    steep = json.loads((tmp_path / "fit.json").read_text())
    steep["law"]["beta"] = 1e3
    (tmp_path / "steep.json").write_text(json.dumps(steep))
    for line in ("predict --active 3e8 --tokens 6T", "design --tokens 6T"):
        assert main(["scale", *line.split(), "--law", "steep.json"]) == 2
        assert "finite loss" in capsys.readouterr().err


def test_the_sweep_of_the_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are fitted, drawn and asked; what is not alike is not mixed in silence."""
    monkeypatch.chdir(tmp_path)
    rows = Path(__file__).parents[2] / "docs" / "data" / "sweep.jsonl"
    line = f"fit {rows} --bootstrap 4 --form dense"
    text = scale(capsys, f"{line} --g 8 --shared yes --json fit.json --pictures drawn")
    assert "fitted as if these were alike" not in text
    assert {path.stem for path in (tmp_path / "drawn").iterdir() if is_png(path)} == {
        "predicted-against-measured",
        "residuals",
        "measured-iso-flop",
        "measured-iso-memory",
        "measured-loss-against-memory",
        "measured-sweet-spot",
    }
    assert "fitted as if these were alike" in scale(capsys, line)
    asked = record(capsys, "predict --active 150k --tokens 200k --law fit.json")
    assert 3 < asked["loss"] < 4 and asked["warnings"] == []


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(record(capsys, "compare")["models"]) == 8
    assert "OLMoE-1B-7B" in scale(capsys, "compare --context 1024")


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale(capsys, f"predict --active 3e8 --tokens 3e11 --pictures {tmp_path}/new")
    scale(capsys, f"design --like S --pictures {tmp_path}/new")
    drawn = record(capsys, f"compare --pictures {tmp_path}/new")["pictures"]
    assert drawn == [f"{tmp_path}/new/pareto.png"]
    names = {path.stem for path in (tmp_path / "new").iterdir() if is_png(path)}
    assert names == {"iso-flop", "iso-memory", "loss-against-memory", "sweet-spot", "pareto"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("predict --active 0 --tokens 1e9", "0 active parameters"),
        (
            "predict --active 0.3 --tokens 500e9",
            "--active 0.3 is below a million: give plain counts",
        ),
        ("predict --active 1e9 --tokens 1e9 --experts 0", "0 experts"),
        ("predict --active 1e9 --tokens 1e9 --law nowhere.json", "nowhere.json"),
        ("design --memory 1e7", "No design fits into 0.01 GB"),
        ("design --memory -1", "'-1' is no size; write it like 500MB, 5GB or 5e9"),
        ("predict --active -3e8 --tokens 6T", "'-3e8' is no number; write it like 300M"),
        ("design --memory -5GB", "'-5GB' is no size"),
        ("design --tokens 500", "--tokens 500 is below a million: give plain counts"),
        ("design --like tiny", "tiny is not of the paper's design space"),
        ("design --context 9000", "A context of 9000 tokens: designs take 1 to 8192"),
        ("design --experts 8 --k 1 --g 4 --shared yes", "can have a shared expert"),
        ("sweep quickstrat", "no grid quickstrat (did you mean 'quickstart'?)"),
        ("design --memory 0", "memory is 0; it must be above 0"),
        ("predict --active big --tokens 6T", "'big' is no number; write it like 300M, 6T or"),
        ("predict --active 300MB --tokens 6T", "'300MB' is no number"),
        ("design --tokens-per-second 10", "needs a device"),
        ("design --device nokia", "no device 'nokia'"),
        ("design --like S --memory 1e9", "leave out --memory"),
        ("design --like XL", "no preset 'XL'"),
        ("design --g 3", "g = 3: known of a granularity's price are 1, 2, 4, 8, 16"),
        ("design --k 0", "k = 0: it must be 1 or more"),
        ("design --experts 0", "E / k = 0: it must be 1 or more"),
        ("design --runtime-memory -5", "'-5' is no size"),
        ("fit nowhere.jsonl", "nowhere.jsonl"),
        ("fit runs.jsonl --bootstrap -1", "bootstrap is -1"),
        ("fit runs.jsonl --form joined", "no form 'joined' (did you mean 'joint'?)"),
        ("compare --context 9000", "takes 1 to 4096"),
        ("fit runs.jsonl --g 4", "there are g = 8 with a shared expert"),
        ("sweep nowhere.toml", "nowhere.toml"),
    ],
)
def test_mistakes_are_told(
    line: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic_losses.write(tmp_path / "runs.jsonl", synthetic_losses.rows(0))
    try:
        assert main(["scale", *line.split()]) == 2
    except SystemExit as exit:  # argparse's own
        assert exit.code == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_bare_scale_lists_its_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    out = scale(capsys, "")
    assert all(task in out for task in ("predict", "design", "sweep", "fit", "compare"))


def test_a_sweep_speaks_of_its_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text("[[grids]]\nE = [1]\nsizes = [[64, 1]]\ntokens = [100]\n")
    line = ["scale", "sweep", str(grid), "--plan"]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert "warmup_steps" in error and 'goes into the grid\'s set = ["..."]' in error
    (tmp_path / "file").touch()
    assert main([*line, "--run", str(tmp_path / "file")]) == 2
    assert f"mobilemoe: {tmp_path / 'file'} is a file: choose" in capsys.readouterr().err
