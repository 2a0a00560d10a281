"""`mobilemoe export`: targets with options of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobilemoe_mlx.cli.export import TARGETS
from mobilemoe_mlx.cli.main import main


def test_without_a_target_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export"]) == 0
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in TARGETS)
    assert "coreml" in TARGETS
    assert "--context" not in out.replace("--context 512", "")


def test_each_target_has_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "coreml", "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "usage: mobilemoe export coreml" in out and "--moe" in out
    assert out.endswith("--moe custom-layer\n")  # the last example


def test_figures_as_json(
    int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "x.mlpackage", tmp_path / "figures.json"
    command = ["export", "coreml", str(int4_folder), str(out), "--context", "32"]
    assert main([*command, "--json", str(tmp_path / "no" / "f.json")]) == 2
    assert "--json" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--json", str(figures)]) == 0
    content = json.loads(figures.read_text())
    assert content["package"] == str(out)
    files = [p for p in out.rglob("*") if p.is_file()]
    assert content["package_bytes"] == sum(p.stat().st_size for p in files)
    assert content["has_tokenizer"] is True
    assert "Check it: mobilemoe verify" in capsys.readouterr().out
