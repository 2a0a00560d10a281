"""What is wrong with a command line is said in one sentence, with the nearest known name."""

from __future__ import annotations

import argparse

import pytest

from mobilemoe_mlx.cli.main import COMMANDS, command_parser, main
from mobilemoe_mlx.cli.parser import Parser


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export corml a b", "argument TARGET: there is no 'corml' (did you mean 'coreml'?)"),
        ("export coreml a b --moe layers", "there is no 'layers'; known: core-ops, custom-layer"),
        ("export coreml a b --contxt 8", "there is no option --contxt (did you mean '--context'?)"),
        ("generate m --max-tokns=3", "there is no option --max-tokns (did you mean"),
        ("convert a b --to mxl", "there is no 'mxl' (did you mean 'mlx'?); known: published, mlx"),
        ("verify a --against b --case shrt", "there is no 'shrt' (did you mean 'short'?)"),
        ("tokenizer trian a", "there is no 'trian' (did you mean 'train'?)"),
        ("info S M", "there is one argument too many: 'M'"),
    ],
)
def test_names(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def numeric_options() -> list[tuple[str, str, type]]:
    """Every option of every command that takes a number."""
    found = []

    def collect(words: str, parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    collect(f"{words} {name}", child)
            elif action.type in (int, float):
                found.append((words, action.option_strings[0], action.type))

    for name in COMMANDS:
        collect(name, command_parser(name))
    return found


def test_every_command_parses_numbers_in_the_same_way() -> None:
    options = numeric_options()
    assert {"--max-tokens", "--context", "--vocab-size", "--tolerance"} < {o for _, o, _ in options}
    for command, option, kind in options:
        parser = command_parser(command.split()[0])
        assert isinstance(parser, Parser)
        bad = ["x", "", "nan", "inf", "1e400", "9" * 5000] + (["1.5"] if kind is int else [])
        for value in bad:
            with pytest.raises(SystemExit):
                parser.parse_args([*command.split()[1:], f"{option}={value}"])


@pytest.mark.parametrize("value", ["x", "nan", "1e400"])
def test_what_a_number_must_be(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option, kind in (("--max-tokens", "whole number"), ("--top-p", "number")):
        with pytest.raises(SystemExit):
            main(["generate", "model", f"{option}={value}"])
        error = capsys.readouterr().err
        assert f"argument {option}: " in error and f" {kind}\n" in error
        assert "invalid" not in error
