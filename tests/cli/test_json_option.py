"""`--json`: the same in every command that prints figures."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
from pathlib import Path

import pytest

from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.main import COMMANDS, command_parser, main
from mobilemoe_mlx.errors import UserError

EXAMPLES = {
    command: importlib.import_module(f"mobilemoe_mlx.cli.{command}").EXAMPLES
    for command in COMMANDS
}


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"chat"}))
def test_every_command_that_prints_figures_has_it(command: str) -> None:
    """All but the chat, which prints nothing but answers and their cost."""
    for example in EXAMPLES[command]:
        _, _, *arguments = shlex.split(example)
        if "--json" in arguments:
            assert command_parser(command).parse_args(arguments).json.endswith(".json")
        else:
            assert command_parser(command).parse_args([*arguments, "--json"]).json == "-"


def test_forms() -> None:
    parser = argparse.ArgumentParser()
    add_json_argument(parser)
    assert parser.parse_args([]).json is None
    assert parser.parse_args(["--json", "x.json"]).json == "x.json"
    assert prints_json(parser.parse_args(["--json"]).json)
    assert prints_json(parser.parse_args(["--json", "-"]).json)
    assert not prints_json("x.json") and not prints_json(None)


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"tokens": 3, "text": "äö"}
    write_json(str(tmp_path / "x.json"), record)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == record
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    write_json("-", record)
    assert json.loads(capsys.readouterr().out) == record
    write_json(None, record)
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    for path in (
        tmp_path,
        tmp_path / "folder.json",
        tmp_path / "no" / "x.json",
        tmp_path / "x.toml",
        "S",
        "bad\0name",
    ):
        with pytest.raises(UserError):
            check_json(str(path))
    check_json(str(tmp_path / "x.json"))
    check_json("-")
    check_json("/dev/null")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def test_refused_before_the_work_starts(
    bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["convert", str(bf16_folder), str(output), "--json", str(tmp_path)]
    assert main(command) == 2
    assert "--json" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("place", ["-", "file"])
def test_generate(
    bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    file = tmp_path / "answer.json"
    command = ["generate", str(bf16_folder), "--prompt", "def", "--max-tokens", "4"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert main([*command, "--json", "-" if place == "-" else str(file)]) == 0
    out = capsys.readouterr().out
    record = json.loads(out if place == "-" else file.read_text(encoding="utf-8"))
    assert (record["prompt"], record["answer"].rstrip("\n")) == ("def", text.rstrip("\n"))
    assert 1 <= record["generated_tokens"] <= 4
    assert place == "-" or out == text


def test_tokenizer(
    quickstart_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = quickstart_home / "runs" / "quickstart" / "corpus" / "qa.heldout.jsonl"
    command = ["tokenizer", "train", str(corpus), "--vocab-size", "400"]
    assert main([*command, "--output", str(tmp_path / "t"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vocab_size"] == 400


def test_plot(quickstart_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = quickstart_home / "runs" / "quickstart" / "training"
    assert main(["plot", str(training), "--output", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert all(Path(path).is_file() for path in record["pictures"])
    for curves in record["stages"].values():
        steps = [step for step, _ in curves["loss"]]
        assert steps == list(range(1, len(steps) + 1))
        assert curves["heldout_loss"][0][0] == 0
