"""The commands of docs/ios.md work as typed; its Swift is tested in tests/swift."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from mobilemoe_mlx.cli.main import main

PAGE = Path(__file__).parents[3] / "docs" / "ios.md"


def test_the_commands_work_as_typed(
    quickstart_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the folder that a quickstart has run in."""
    shutil.copytree(quickstart_home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    block = re.search(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert block
    commands = [line for line in block[1].splitlines() if line]
    assert [shlex.split(command)[1] for command in commands] == ["export", "verify", "info"]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "home" / "MobileMoE-tiny-resources" / "manifest.json").is_file()
