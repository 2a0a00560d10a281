"""What is wrong with a command line is said in one sentence, with the nearest known name."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

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
        ("chat m --adapter=", "argument --adapter: its value is empty"),
        ("train tiny --seed 0 --seed 0", "argument --seed: it is given twice: leave one out"),
        ("eval m --chat --no-chat", "argument --chat/--no-chat: it is given twice"),
        ("export onnx a b --context 8 --contex=9", "argument --context: it is given twice"),
    ],
)
def test_names(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def arguments() -> Iterator[tuple[str, argparse.Action]]:
    """Every argument of every command and sub-command, with the words that call it."""

    def of(words: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    yield from of(f"{words} {name}", child)
            else:
                yield words, action

    for name in COMMANDS:
        yield from of(name, command_parser(name))


def numeric_options() -> list[tuple[str, str, type]]:
    """Every option of every command that takes a number."""
    return [
        (words, action.option_strings[0], action.type)
        for words, action in arguments()
        if action.type in (int, float)
    ]


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


def test_only_texts_are_empty(capsys: pytest.CaptureFixture[str]) -> None:
    """As a path, an empty word would be the current folder."""
    texts = set()
    for words, action in arguments():
        command, *rest = words.split()
        if action.nargs == 0 or action.choices is not None:
            continue
        option = action.option_strings[:1]
        with pytest.raises(SystemExit):
            command_parser(command).parse_args([*rest, *option, ""])
        error = capsys.readouterr().err
        if "its value is empty" not in error:
            texts.add((command, *option))
    assert texts == {
        ("generate", "--prompt"),
        ("generate", "--stop"),
        ("chat", "--stop"),
        ("chat", "--system"),
        ("compare", "--prompt"),
        ("verify", "--prompt"),
        ("export", "--author"),
        ("export", "--license"),
    }


def test_options_that_collect_are_repeated() -> None:
    parser = command_parser("train")
    for _ in range(2):  # a line after another begins anew
        line = ["tiny", "--set", "a=1", "--set", "b=2", "--seed", "1"]
        assert parser.parse_args(line).overrides == ["a=1", "b=2"]
