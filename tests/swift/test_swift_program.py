"""`mobilemoe-swift`: the text of `mobilemoe`, its figures, and one sentence for each mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilemoe_mlx.bench.measure import bench
from mobilemoe_mlx.bench.results import read_results
from mobilemoe_mlx.cli import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]

EXACT = ("--precision", "exact")


@pytest.mark.parametrize(
    "prompt", ["import os", "def f(x):\n", "The quick brown fox", "é", "日本 🙂"]
)
@pytest.mark.parametrize("options", [(), ("--repetition-penalty", "1.3", "--stop", "th")])
def test_greedy_text_is_that_of_python(
    int4_folder: Path,
    run_program: Run,
    capsys: pytest.CaptureFixture[str],
    prompt: str,
    options: tuple[str, ...],
) -> None:
    line = ["generate", str(int4_folder), "--prompt", prompt, "--max-tokens", "40", *options]
    assert main.main([*line, "--engine", "cpu", *EXACT]) == 0
    done = run_program(*line, *EXACT)
    assert (done.returncode, done.stdout) == (0, capsys.readouterr().out), done.stderr


def test_a_chat_is_that_of_python(
    int4_folder: Path, tmp_path: Path, run_program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["Hello", "/context", "/hlep", "What is a list?", f"/save {tmp_path / 'NAME.json'}", ""]
    line = ["chat", str(int4_folder), "--system", "Be brief.", "--max-tokens", "12", *EXACT]
    theirs = "\n".join(lines).replace("NAME", "python")
    done = subprocess.run(
        [sys.executable, "-m", "mobilemoe_mlx.cli.main", *line, "--engine", "cpu"],
        input=theirs,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = run_program(*line, text="\n".join(lines).replace("NAME", "swift"))
    assert (ours.returncode, ours.stdout) == (0, done.stdout), ours.stderr
    saved = [json.loads((tmp_path / f"{name}.json").read_bytes()) for name in ("python", "swift")]
    assert saved[0] == saved[1]
    assert len(saved[1]["messages"]) == 5
    for part in (
        "Context: ",
        "(did you mean '/help'?)",
        "Saved 5 messages",
        "cut at max-tokens (12)",
    ):
        assert part in ours.stderr
    on = run_program(
        *line[:2], "--load", tmp_path / "swift.json", *EXACT, text="/context\n/reset\n"
    )
    assert on.returncode == 0
    assert "tokens used" in on.stderr and "forgotten" in on.stderr


def test_ids_need_no_tokenizer(int4_folder: Path, tmp_path: Path, run_program: Run) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(int4_folder / name, folder)
    line = ["generate", folder, "--token-ids", "1,2,3", "--max-tokens", "8", *EXACT, "--ignore-eos"]
    done = run_program(*line, "--print-ids")
    ids = done.stdout.splitlines()[-1]
    assert len(ids.split(",")) == 8
    again = run_program(*line, "--print-ids", "--threads", "1", "--expert-memory", "20KB", "--json")
    record = json.loads(again.stdout)
    assert ",".join(map(str, record["answer_ids"])) == ids
    assert record["finish_reason"] == "max tokens" and record["generated_tokens"] == 8
    # With a tokenizer the text comes too.
    text = run_program(*line[:1], int4_folder, *line[2:], "--print-ids")
    assert text.stdout.splitlines()[-1] == ids
    refused = run_program(*line)
    assert refused.returncode == 2 and "tokenizer.json" in refused.stderr


def test_the_figures_as_json(int4_folder: Path, tmp_path: Path, run_program: Run) -> None:
    path = tmp_path / "answer.json"
    line = ["generate", int4_folder, "--prompt", "import", "--max-tokens", "5"]
    done = run_program(*line, "--json", path)
    record = json.loads(path.read_bytes())
    assert done.stdout.removesuffix("\n") == record["answer"].removesuffix("\n")
    assert record["prompt"] == "import" and record["generated_tokens"] <= 5
    wrong = run_program(*line, "--json", tmp_path / "model")
    assert wrong.returncode == 2 and "needs a name that ends in .json" in wrong.stderr
    assert run_program(*line, "--json", tmp_path / "no" / "a.json").returncode == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["generat"], "There is no command 'generat' (did you mean 'generate'?)."),
        (["generate"], "the folder of the model is missing."),
        (["generate", "MODEL", "two"], "there is one argument too many: 'two'."),
        (["generate", "MODEL", "--promt", "a"], "no option --promt (did you mean '--prompt'?)."),
        (["generate", "MODEL", "--prompt"], "--prompt needs a value: --prompt TEXT."),
        (
            ["generate", "MODEL", "--prompt", ""],
            "The prompt is empty: there is nothing to continue.",
        ),
        (["generate", "MODEL", "--prompt", "a", "--prompt-file", "b"], "exclude each other."),
        (
            ["generate", "MODEL", "--prompt-file", "/nowhere"],
            "/nowhere cannot be read: No such file",
        ),
        (["generate", "MODEL", "--prompt", "a", "--max-tokens", "x"], "'x' is not a whole number."),
        (
            ["generate", "MODEL", "--prompt", "a", "--max-tokens", "0"],
            "max-tokens is 0; it must be",
        ),
        (
            ["generate", "MODEL", "--prompt", "a", "--temperature", "nan"],
            "nan is not a finite number.",
        ),
        (
            ["generate", "MODEL", "--prompt", "a", "--temperature", "-1"],
            "temperature is -1.0; it must",
        ),
        (["generate", "MODEL", "--prompt", "a", "--seed", "-1"], "seed is -1; it must be a whole"),
        (
            ["generate", "MODEL", "--prompt", "a", "--precision", "int4"],
            "no precision 'int4' (did you",
        ),
        (
            ["generate", "MODEL", "--prompt", "a", "--threads", "17"],
            "17 threads: the CPU engine takes",
        ),
        (["generate", "MODEL", "--prompt", "a", "--engine", "mlx"], "has the engine 'cpu' alone"),
        (
            ["generate", "MODEL", "--prompt", "a", "--adapter", "b"],
            "The CPU engine takes no adapters",
        ),
        (
            ["generate", "MODEL", "--prompt", "a", "--expert-memory", "5TB"],
            "'5TB' is no size; write",
        ),
        (
            ["generate", "MODEL", "--prompt", "a", "--expert-memory", "7"],
            "7 bytes of memory for exp",
        ),
        (["generate", "MODEL", "--prompt", "a", "--context", "300"], "this model takes 1 to 256."),
        (
            ["generate", "MODEL", "--prompt", "a", "--memory-limit", "50K"],
            "Choose --expert-memory, which reads experts when they are needed, or an int8 cache",
        ),
        (["generate", "MODEL", "--token-ids", "1,,2", "--print-ids"], "'1,,2' is not like 1,2,3."),
        (
            ["generate", "MODEL", "--token-ids", "1,480", "--print-ids", "--max-tokens", "3"],
            "a token 480, but the model",
        ),
        (
            ["generate", "MODEL", "--token-ids", ",".join("1" * 256), "--print-ids"],
            "256 tokens, but",
        ),
        (["generate", "owner/name", "--prompt", "a"], "no folder owner/name. A repository"),
        (["generate", "/nowhere", "--prompt", "a"], "There is no folder /nowhere."),
        (["generate", "CONFIG", "--prompt", "a"], "is a file: give the folder"),
        (["chat", "MODEL", "--load", "/nowhere.json"], "/nowhere.json cannot be opened"),
        (["bench", "MODEL", "--contexts", "256,x"], "'256,x' is not like 256,1k,4k."),
        (["bench", "MODEL", "--rounds", "0"], "0 rounds: at least 1 is needed."),
        (["bench", "MODEL", "--engine", "mlx"], "There is no engine 'mlx'."),
        (["bench", "MODEL", "--engine", "cpu:int9"], "There is no precision 'int9'"),
        (["bench", "MODEL", "--compare", "CONFIG"], "was not written by `bench --json`."),
        (["bench", "MODEL", "--expert-memory", "7"], "The engine cpu:int8:"),
        (["bench", "MODEL", "--rivals", "torch"], "mobilemoe-swift has no --rivals"),
    ],
)
def test_mistakes(int4_folder: Path, run_program: Run, words: list[str], sentence: str) -> None:
    places = {"MODEL": int4_folder, "CONFIG": int4_folder / "config.json"}
    done = run_program(*(places.get(word, word) for word in words))
    lines = [line for line in done.stderr.splitlines() if not line.startswith("bench: ")]
    assert (done.returncode, done.stdout) == (2, "")
    assert len(lines) == 1 and lines[0].startswith("mobilemoe-swift: ")
    assert sentence in lines[0]


def test_damaged_folders(int4_folder: Path, tmp_path: Path, run_program: Run) -> None:
    folder = tmp_path / "it"
    shutil.copytree(int4_folder, folder)
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    done = run_program("generate", folder, "--prompt", "a")
    assert done.returncode == 2 and "Download it again" in done.stderr
    shutil.copy(int4_folder / "model.safetensors", folder)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    done = run_program("generate", folder, "--prompt", "a")
    assert done.returncode == 2 and "tokenizer" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_chat_goes_on_after_a_mistake(int4_folder: Path, program: Path) -> None:
    lines = [b"/load /nowhere.json", b"/save", b"\xfa\xff", b"word " * 400, b"Hello"]
    done = subprocess.run(
        [program, "chat", int4_folder, "--max-tokens", "3"],
        input=b"\n".join(lines),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    for part in (
        b"/nowhere.json cannot be opened",
        b"/save needs the name of a file: /save FILE.",
        b"The message is not UTF-8 text.",
        b"but the context is 256",
        b"Generated: 3 tokens",
    ):
        assert part in done.stderr
    only_bad = subprocess.run(
        [program, "chat", int4_folder],
        input=b"\xff\n" + b"word " * 400,
        capture_output=True,
        check=False,
    )
    assert only_bad.returncode == 1  # nothing was answered


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk(int4_folder: Path, program: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [program, "generate", int4_folder, "--prompt", "a", "--max-tokens", "3"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "mobilemoe-swift: standard output: No space left on device.\n"


def test_an_interrupt_stops_the_answer(int4_folder: Path, tmp_path: Path, program: Path) -> None:
    """The first Ctrl-C the answer, one that comes between answers the program."""
    folder = tmp_path / "long"
    shutil.copytree(int4_folder, folder)
    config = json.loads((folder / "config.json").read_bytes())
    config["max_position_embeddings"] = 100_000
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    chat = subprocess.Popen(
        [
            program,
            "chat",
            folder,
            "--max-tokens",
            "90000",
            "--stop",
            "never there",
            "--precision",
            "exact",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert chat.stdin and chat.stdout and chat.stderr
    # A prompt of tens of thousands of tokens: the interrupt comes while the kernel reads it.
    chat.stdin.write(b"import os " * 8000 + b"\n")
    chat.stdin.flush()
    time.sleep(1)
    chat.send_signal(signal.SIGINT)
    line = chat.stderr.readline()
    assert line == b"(stopped)\n"
    chat.send_signal(signal.SIGINT)
    # Its input is still open: an end of input, which ends it with 0, would race with the signal.
    assert chat.wait(timeout=30) == 130
    assert chat.communicate()[1] == b"mobilemoe-swift: interrupted.\n"


def test_bench_and_its_file(
    int4_folder: Path, tmp_path: Path, run_program: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "swift.json"
    line = ["bench", int4_folder, "--contexts", "16,40", "--rounds", "2", "--engine", "cpu:int8"]
    done = run_program(*line, "--expert-memory", "30KB", "--json", path)
    assert done.returncode == 0, done.stderr
    ours = read_results(path)
    (engine,) = ours.engines
    assert engine.name == "cpu:int8" and list(engine.contexts) == [16, 40]
    for prompt, measured in engine.contexts.items():
        assert (measured.prompt, measured.decoded) == (prompt, 32)
        assert len(measured.first_token_seconds) == len(measured.decode_seconds) == 2
        assert measured.experts[0]["hits"] > 0 and measured.peak_bytes > 1_000_000
    assert engine.repeated is not None and engine.repeated.prompt == 16
    assert "experts found" in done.stdout and "GB/s read from memory" in done.stdout
    theirs = bench(int4_folder, ["cpu:int8"], prompts=[16], rounds=1, threads=1)
    assert theirs.token_bytes == ours.token_bytes
    (tmp_path / "python.json").write_text(json.dumps(theirs.to_dict()), encoding="utf-8")
    compared = run_program(*line, "--threads", "1", "--compare", tmp_path / "python.json")
    assert compared.returncode == 0, compared.stderr
    row = next(x for x in compared.stdout.splitlines() if x.split()[:2] == ["cpu:int8", "16"])
    assert row.count(" x") == 2 and "x: times the earlier figure." in compared.stdout
    assert main.main(["bench", str(int4_folder), "--contexts", "16", "--rounds", "1", "--engine",
                      "cpu:int8", "--compare", str(path)]) == 0  # fmt: skip
    assert "x: times the earlier figure" in capsys.readouterr().out


def test_help_and_examples(run_program: Run) -> None:
    assert "usage: mobilemoe-swift COMMAND" in run_program().stdout
    for command in ("generate", "chat", "bench"):
        shown: Any = run_program(command, "--help")
        assert shown.returncode == 0
        assert f"mobilemoe-swift {command} runs/quickstart/training/qat/model" in shown.stdout
