"""The commands of docs/numerics.md work as typed, with the model that the quickstart leaves."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from mobilemoe_mlx.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "numerics.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


@pytest.fixture(scope="module")
def home(quickstart_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder that a quickstart has run in."""
    folder = tmp_path_factory.mktemp("numerics") / "home"
    shutil.copytree(quickstart_home, folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_work_as_typed(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    program, *arguments = shlex.split(command, comments=True)
    assert program == "mobilemoe"
    assert main(arguments) == 0, capsys.readouterr()


def test_the_page_has_both_commands() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} == {"compare", "verify"}
