"""The blocks of the documents marked `<!-- tested -->` are run, on a small quickstart."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from small_quickstart import SMALL

from mobilemoe_mlx.cli.main import command_parser, main
from mobilemoe_mlx.train.recipe import load_recipe

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

_MARKED = re.compile(r"<!-- tested -->\n```(sh|python)\n(.*?)\n```", re.DOTALL)


class Block(NamedTuple):
    """A block that is to be run."""

    name: str  # document and number
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        found = _MARKED.finditer(document.read_text(encoding="utf-8"))
        for number, match in enumerate(found, 1):
            yield Block(f"{document.stem}-{number}", match[1], match[2])


BLOCKS = list(blocks())


def test_every_mark_stands_before_a_block() -> None:
    marks = sum(path.read_text(encoding="utf-8").count("<!-- tested -->") for path in DOCUMENTS)
    assert marks == len(BLOCKS) > 0


@pytest.fixture
def home(quickstart_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a small quickstart in it and `mobilemoe` on the PATH."""
    shutil.copytree(quickstart_home, tmp_path / "home")
    program = tmp_path / "bin" / "mobilemoe"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m mobilemoe_mlx.cli.main "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def check_as_typed(arguments: list[str]) -> None:
    """The recipe takes the command's own values, and not only those that make it small."""
    args = command_parser("train").parse_args(arguments)
    load_recipe(args.recipe, args.overrides, args.stage)


def test_no_run_stands_in_anothers_way() -> None:
    """All documents may be followed in one checkout, one after the other."""
    folders: dict[str, str] = {}
    for block in BLOCKS:
        written = set(re.findall(r"mobilemoe train .*?--run (\S+)", block.text.replace("\\\n", "")))
        taken = set(re.findall(r"mkdir -p (\S+)", block.text)) | written
        for folder in taken:
            assert folders.setdefault(folder, block.name) == block.name, folder
    assert len(folders) > 3


@pytest.mark.usefixtures("datasets_cache", "home")
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_block(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    if block.language == "python":
        exec(compile(block.text, block.name, "exec"), {})
        return
    for command in commands(block.text):
        words = shlex.split(command, comments=True) if "<<" not in command else []
        if words[:1] == ["mobilemoe"] and not {"|", "<", ">", "&&"} & set(words):
            if words[1] == "train":  # of the small model that stands there
                check_as_typed(words[2:])
                length = any(word.startswith("epochs=") for word in words)
                small = [v for v in SMALL if not (length and v.startswith("tokens="))]
                words += [f"--set={value}" for value in small]
            assert main(words[1:]) == 0, (command, capsys.readouterr())
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=300)


def commands(text: str) -> Iterator[str]:
    """The commands of a block: lines, with what continues them and the texts they are given."""
    lines = iter(text.splitlines())
    for line in lines:
        command = line
        while command.endswith("\\"):
            command = command[:-1] + next(lines).strip()
        if heredoc := re.search(r"<<-?\s*'?(\w+)'?", command):
            for more in lines:
                command += f"\n{more}"
                if more == heredoc[1]:
                    break
        if command.strip():
            yield command


def test_commands_of_a_block() -> None:
    text = "a b \\\n  c\n\ncat > x <<'END'\none\n\ntwo\nEND\nd  # e"
    assert list(commands(text)) == ["a b c", "cat > x <<'END'\none\n\ntwo\nEND", "d  # e"]
