"""The examples that commands show: each parses, and those that are quick are run."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
from small_quickstart import SMALL

from mobilemoe_mlx.adapters.adapter_file import save_adapter
from mobilemoe_mlx.adapters.attach import attach
from mobilemoe_mlx.adapters.base_digest import base_digest
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.cli import main as command_line
from mobilemoe_mlx.cli.main import COMMANDS, command_parser, main
from mobilemoe_mlx.data.stdlib_tasks import build_stdlib_tasks

EXAMPLES = [example for command in COMMANDS for example in command_line._module(command).EXAMPLES]
# Minutes of training, and ten seconds of rendering the whole library: tests of their own run these.
SLOW = ("mobilemoe quickstart", "mobilemoe corpus")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_two_or_three(command: str) -> None:
    module = command_line._module(command)
    examples = module.EXAMPLES
    targets = getattr(module, "TARGETS", ("",))  # of an export, each with its own
    assert 2 * len(targets) <= len(examples) <= 3 * len(targets)
    assert all(f"{example} ".startswith(f"mobilemoe {command} ") for example in examples)
    assert command_parser(command).format_help().endswith("\n  ".join(["", *examples]) + "\n")


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_parses(example: str) -> None:
    _, command, *arguments = shlex.split(example)
    command_parser(command).parse_args(arguments)


@pytest.fixture(scope="module")
def home(quickstart_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that examples may write into, in the order in which they are shown.

    With an adapter, the conversations of README.md, and tasks for `eval`.
    """
    folder = tmp_path_factory.mktemp("examples") / "home"
    shutil.copytree(quickstart_home, folder)
    base = folder / "runs/quickstart/training/sft/model"
    model = load_model(base)
    config = AdapterConfig()
    attach(model, config)
    mine = folder / "runs" / "mine"
    mine.mkdir()
    parameters = model.trainable_parameters()
    layers = len(model.layers)
    save_adapter(mine / "adapter", parameters, config, base_digest(base), num_layers=layers)
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A."}]
    lines = [json.dumps({"messages": [*turns, *turns][: 2 * n]}) for n in (1, 2)]
    (mine / "chat.jsonl").write_text("\n".join(lines) + "\n")
    build_stdlib_tasks(folder / "runs" / "stdlib-tasks")
    return folder


@pytest.mark.usefixtures("datasets_cache")
@pytest.mark.parametrize("example", [line for line in EXAMPLES if not line.startswith(SLOW)])
def test_examples_work_as_they_stand(
    example: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr("sys.stdin", io.StringIO("What does `os.path.isdir` do?\n"))
    _, command, *arguments = shlex.split(example)
    if command == "train":  # of the small model that stands there, not of the full tiny one
        arguments += [f"--set={value}" for value in SMALL]
    assert main([command, *arguments]) == 0, capsys.readouterr()
    assert capsys.readouterr().out
    if "--json" in arguments:
        assert (home / arguments[arguments.index("--json") + 1]).stat().st_size > 2
