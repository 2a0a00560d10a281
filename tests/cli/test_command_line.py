"""The command line itself: errors without tracebacks, exit status, every command's help."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mobilemoe_mlx
from mobilemoe_mlx.cli.main import COMMANDS, main

# For processes of their own: this checkout.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mobilemoe_mlx.__file__).parents[1])}
RECIPES = Path(mobilemoe_mlx.__file__).parents[1] / "recipes"
COMMAND = [sys.executable, "-m", "mobilemoe_mlx.cli.main"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"mobilemoe {command}" in capsys.readouterr().out


def test_misspelt_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genrate"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'generate'" in error
    assert "Traceback" not in error


def test_user_errors_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "no/such/folder/here", "--prompt", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mobilemoe: ")
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_bare_command_prints_the_list(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for command, (summary, _) in COMMANDS.items():
        place = lines.index(f"  {command:<11} {summary}")
        assert lines[place + 1].strip().startswith(f"mobilemoe {command}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert (
        capsys.readouterr().out == f"mobilemoe-mlx {importlib.metadata.version('mobilemoe-mlx')}\n"
    )


def test_errors_of_the_system_name_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").mkdir()
    assert main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"mobilemoe: Cannot read {tmp_path / 'config.json'}: Is a directory.\n"
    )
    file = tmp_path / "file"
    file.touch()
    assert main(["corpus", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mobilemoe: {file}") and "Traceback" not in error


def test_a_closed_pipe_is_not_an_error() -> None:
    code = (
        "import sys; from mobilemoe_mlx.cli import info, main\n"
        "def run(args): raise BrokenPipeError(32, 'Broken pipe')\n"
        "info.run = run; sys.exit(main.main(['info']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (2, b"mobilemoe: No space left on device\n")


@pytest.mark.parametrize(
    "command",
    [
        ["corpus", "FILE"],
        ["tokenizer", "train", __file__, "--vocab-size", "400", "--output", "FILE"],
        ["plot", "run", "--output", "FILE/pictures"],
        ["quickstart", "--run", "FILE"],
    ],
    ids=lambda command: command[0],
)
def test_a_file_in_the_place_of_a_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before any work."""
    (tmp_path / "file").write_text("mine")
    assert main([word.replace("FILE", str(tmp_path / "file")) for word in command]) == 2
    assert f"mobilemoe: {tmp_path / 'file'} is a file: choose" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_misspelt_recipe_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tini"]) == 2
    assert "no recipe tini (did you mean 'tiny'?)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def mixture_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "a.jsonl").write_text('{"text": "one"}\n')
    file = folder / "mixture.toml"
    file.write_text('format = "text"\n[[sources]]\nname = "a"\nweight = 1\nfiles = ["a.jsonl"]\n')
    return file


@pytest.mark.parametrize(
    "kind", ["list", "help", "sizes", "checkpoint", "recipe", "mixture", "run"]
)
def test_light_commands_import_no_heavy_library(
    kind: str, int4_folder: Path, quickstart_home: Path, mixture_file: Path
) -> None:
    """They answer in half a second; with transformers and torch it would be seconds."""
    arguments = {
        "list": [],
        "help": ["train", "--help"],
        "sizes": ["info"],
        "checkpoint": ["info", str(int4_folder)],
        "recipe": ["info", str(RECIPES / "tiny.toml")],
        "mixture": ["info", str(mixture_file)],
        "run": ["info", str(quickstart_home / "runs" / "quickstart")],
    }[kind]
    program = (
        "import sys\n"
        "from mobilemoe_mlx.cli.main import main\n"
        "try:\n"
        "    status = main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        "heavy = {'torch', 'transformers', 'mlx_lm', 'coremltools', 'datasets'} & {*sys.modules}\n"
        "sys.exit(status or ', '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
