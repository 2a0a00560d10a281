"""Each command that takes a model refuses another program's in a sentence that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilemoe_mlx.cli.main import main

# How a GGUF begins (its magic and version 3): what is in it is of no account.
GGUF = b"GGUF\x03\0\0\0" + bytes(64)
COMMANDS = (
    ("generate", "{}", "--prompt", "a"),
    ("chat", "{}"),
    ("bench", "{}", "--contexts", "16"),
    ("info", "{}"),
    ("convert", "{}", "out"),
    ("compare", "{}"),
    ("export", "coreml", "{}", "out.mlpackage"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
@pytest.mark.parametrize("folder", [False, True])
def test_another_programs_model(
    command: tuple[str, ...],
    name: str,
    folder: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model", name).write_bytes(GGUF)
    model = "model" if folder else f"model/{name}"
    assert main([part.format(model) for part in command]) == 2
    captured = capsys.readouterr()
    said = "files of llama.cpp are not read" if "gguf" in name else "pickles can run code"
    assert f"{name}: {said}" in captured.err and "safetensors" in captured.err
    assert not captured.out and [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_file_that_is_no_model(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("hello", encoding="utf-8")
    assert main([part.format("notes.txt") for part in command]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mobilemoe: notes.txt is ") and "folder" in captured.err
    assert captured.err.count("\n") == 1 and not captured.out
