"""The benchmark: what it measures, how it says it, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest

from mobilemoe_mlx.accounting.cost import bytes_read_per_token
from mobilemoe_mlx.bench.contenders import Contender, engines
from mobilemoe_mlx.bench.measure import DECODED, Process, bench
from mobilemoe_mlx.bench.prompts import real_tokens
from mobilemoe_mlx.bench.results import EngineResults, Measured, Results, read_results
from mobilemoe_mlx.bench.table import as_text
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.config import PRESETS, ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.int4_rounding import as_quantized

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _children_find_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def measured(kernel_is_built: None, int4_folder: Path) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        names = ["cpu:exact", "mlx"]
        return bench(int4_folder, names, prompts=[16, 40, 5000], rounds=2, threads=1)


def test_prompts_are_the_same_in_every_process(tmp_path: Path) -> None:
    """Python's documentation has addresses in it."""
    args = dataclasses.replace(PRESETS["tiny"], vocab_size=256)
    text = bytes(real_tokens(tmp_path, args))  # without a tokenizer, tokens are bytes
    assert b"copy_function=<function copy2>" in text and b" at 0x" not in text


def test_what_is_measured(measured: Results) -> None:
    assert [engine.name for engine in measured.engines] == ["cpu:exact", "mlx"]
    assert len(measured.bandwidth) == 2 and min(measured.bandwidth) > 1e8
    most = 256 - DECODED  # the model's context
    for engine in measured.engines:
        assert list(engine.contexts) == [16, 40, most]
        assert 0 < engine.start_seconds < 60
        for prompt, found in engine.contexts.items():
            assert (found.prompt, found.decoded) == (prompt, DECODED)
            assert len(found.first_token_seconds) == len(found.decode_seconds) == 2
            assert found.peak_bytes > 10_000_000
            assert found.prefill == pytest.approx(prompt / found.first_token)
        assert engine.repeated is not None and engine.repeated.prompt == 16
    cpu, mlx = measured.engines
    assert "1 thread, exact" in cpu.description
    if sys.platform == "linux":  # MLX reads its weights, the kernel maps them
        touched = cpu.contexts[most].touched_bytes
        assert touched is not None and touched > 0
        assert mlx.contexts[most].touched_bytes == 0


def test_json_and_back(measured: Results, tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text(json.dumps(measured.to_dict()), encoding="utf-8")
    assert read_results(tmp_path / "it.json") == measured
    for content in ("[]", "{}", '{"engines": [{}]}'):
        (tmp_path / "it.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="was not written by"):
            read_results(tmp_path / "it.json")


def results(decode_seconds: float) -> Results:
    """One engine: 100 tokens at 200 a second, then 32 in `decode_seconds`."""
    found = Measured(100, 32, [0.4, 0.5, 0.6], [decode_seconds] * 3, 50_000_000, 9_000_000)
    slow = Measured(100, 32, [0.4], [2 * decode_seconds], 50_000_000, 3_000_000)
    engine = EngineResults("cpu:int8", "a model", 0.7, {100: found}, [4096], slow)
    return Results("M", "A CPU", 2, 3, 10_000_000, [1e9, 2e9, 4e9], [engine])


def test_the_table() -> None:
    text = as_text(results(decode_seconds=0.32))
    row = next(line.split() for line in text.splitlines() if line.startswith("cpu:int8   "))
    # 32 tokens in 0.32 s read 1 GB/s, half of the median bandwidth.
    assert row == ["cpu:int8", "100", "0.5", "200", "100", "50", "%", "50.0", "MB", "9.0", "MB"]
    assert "4,096" in text and "--most-seconds" in text
    assert "one token repeated 100 times decodes at 0.50 x the speed of real text" in text
    assert "touches 3.0 MB of the weights in place of 9.0 MB" in text
    compared = as_text(results(decode_seconds=0.16), results(decode_seconds=0.32))
    assert "200 x2.00" in compared and "200 x1.00" in compared


def test_bytes_of_a_token() -> None:
    """S: 272.5M parameters a token in the paper, most of them at 4.5 bits."""
    found = bytes_read_per_token(as_quantized(PRESETS["S"]))
    packed = found - 4 * 20 * 60 * 768
    assert packed / (4.5 / 8) == pytest.approx(272.5e6, rel=0.01)
    assert bytes_read_per_token(PRESETS["S"]) == pytest.approx(2 * 272.5e6, rel=0.01)


def test_what_is_too_slow_is_left_out(measured: Results, int4_folder: Path) -> None:
    found = bench(int4_folder, ["cpu"], prompts=[16], rounds=1, threads=1, most_seconds=0.0)
    assert found.engines[0].left_out == [16]
    assert not found.engines[0].contexts and found.engines[0].repeated is None


def test_a_prompt_beyond_the_context_is_lowered_and_told(
    kernel_is_built: None, int4_folder: Path, tiny_args: ModelArgs
) -> None:
    said: list[str] = []
    most, context = tiny_args.max_position_embeddings - 32, tiny_args.max_position_embeddings
    found = bench(
        int4_folder, ["cpu"], prompts=[10**6], rounds=1, most_seconds=0.0, say=said.append
    )
    assert found.engines[0].left_out == [most]
    assert (
        f"the model's context is {context:,} tokens, answer included: 1,000,000 are lowered to "
        f"{most:,}"
    ) in said


def test_what_was_measured_once_is_measured_in_every_round(
    kernel_is_built: None, int4_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the machine has become slow meanwhile."""
    predictions = iter([1.0, 99.0])
    monkeypatch.setattr(Process, "predicted_seconds", lambda process, prompt: next(predictions))
    found = bench(int4_folder, ["cpu"], prompts=[16], rounds=2, threads=1)
    assert len(found.engines[0].contexts[16].decode_seconds) == 2
    assert not found.engines[0].left_out
    assert "16" in as_text(found)


def test_what_it_refuses(
    int4_folder: Path, bf16_folder: Path, tiny_args: ModelArgs, kernel_is_built: None
) -> None:
    for names, message in (
        (["cup"], "no engine 'cup' .did you mean 'cpu'"),
        (["cpu:int4"], "The engine cpu:int4: There is no precision 'int4'"),
    ):
        with pytest.raises(UserError, match=message):
            bench(int4_folder, names, prompts=[16])
    with pytest.raises(UserError, match=r"The engine cpu: .* is BF16"):
        bench(bf16_folder, ["cpu"], prompts=[16])
    for wrong, message in (
        ({"prompts": [0]}, "Prompts of 0 tokens"),
        ({"rounds": 0}, "0 rounds"),
        ({"threads": 17}, "17 threads"),
    ):
        with pytest.raises(UserError, match=message):
            bench(int4_folder, **wrong)
    assert [c.name for c in engines(bf16_folder, tiny_args, [], 2)] == ["mlx"]


def test_a_process_that_dies_is_told() -> None:
    code = "import json; print(json.dumps({'description': 'x'}), flush=True); input(); exit(3)"
    with (
        Process(Contender("rival", (sys.executable, "-c", code))) as process,
        pytest.raises(UserError, match="The engine rival ended, with status 3"),
    ):
        process.run([1, 2, 3], 2)


def test_the_command(
    int4_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kernel_is_built: None,
) -> None:
    line = [
        "bench",
        str(int4_folder),
        "--engine",
        "cpu:int8",
        "--contexts",
        "8,16",
        "--rounds",
        "1",
    ]
    written = [str(tmp_path / name) for name in ("it.json", "it.png")]
    assert main.main([*line, "--json", written[0], "--picture", written[1]]) == 0
    assert "decode, tokens/s" in capsys.readouterr().out
    assert Path(written[1]).read_bytes().startswith(b"\x89PNG")
    assert main.main([*line, "--compare", written[0]]) == 0
    captured = capsys.readouterr()
    assert " x" in captured.out and "round 1 of 1, 16 tokens, cpu:int8" in captured.err
    with pytest.raises(SystemExit):
        main.main(["bench", line[1], "--contexts", "1x"])
    assert "'1x' is not like 256,1k,4k" in capsys.readouterr().err
    assert main.main([*line, "--picture", str(tmp_path / "no" / "it.png")]) == 2


def test_torch_as_a_rival(int4_folder: Path, kernel_is_built: None) -> None:
    pytest.importorskip("torch")
    found = bench(int4_folder, ["cpu"], rivals=["torch"], prompts=[16], rounds=1, threads=1)
    ours, torch = found.engines
    assert (ours.is_rival, torch.is_rival) == (False, True)
    assert "PyTorch" in torch.description and torch.repeated is None
    assert len(torch.contexts[16].decode_seconds) == 1
    text = as_text(found)
    row = next(line for line in text.splitlines() if line.startswith("torch (rival)"))
    assert " % " not in row  # it reads float32, so that no share of the bandwidth is told


@pytest.fixture
def square_folder(tmp_path: Path, tiny_args: ModelArgs) -> Path:
    """A checkpoint of sizes that llama.cpp's architecture takes."""
    args = dataclasses.replace(tiny_args, num_attention_heads=4)
    write_random_checkpoint(tmp_path / "model", args, quantized=True)
    return tmp_path / "model"


def test_llama_cpp_as_a_rival(square_folder: Path, kernel_is_built: None) -> None:
    for package in ("llama_cpp", "gguf"):
        pytest.importorskip(package)
    found = bench(square_folder, ["cpu"], rivals=["llama.cpp"], prompts=[16, 200], rounds=2)
    theirs = found.engines[1]
    assert theirs.is_rival and theirs.description.startswith("another architecture of the same")
    assert list(theirs.contexts) == [16, 200] and len(theirs.contexts[200].decode_seconds) == 2
    assert "llama.cpp (rival)" in as_text(found)


def test_rivals_that_cannot_be(
    int4_folder: Path, square_folder: Path, tiny_args: ModelArgs, tmp_path: Path
) -> None:
    bare = tmp_path / "python"  # without any package
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    other = tmp_path / "other"  # a program that says yes to everything
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    for rivals, python, message in (
        (["llama.cpp"], str(other), "other is no Python .--llama-python.: give one"),
        (["llama"], None, "no rival 'llama' .did you mean 'llama.cpp'"),
        (["llama.cpp"], "no-such-program", "no program no-such-program"),
        (["llama.cpp"], str(bare), "needs llama-cpp-python and gguf.* No module named"),
    ):
        with pytest.raises(UserError, match=message):
            bench(square_folder, ["cpu"], rivals=rivals, llama_python=python, prompts=[16])
    with pytest.raises(UserError, match="this checkpoint has 96 and 64: leave out"):
        bench(int4_folder, ["cpu"], rivals=["llama.cpp"], prompts=[16])
    with pytest.raises(UserError, match="torch is no engine but a rival: --rivals torch"):
        bench(int4_folder, ["torch"], prompts=[16])


def test_what_computes_everything_anew_takes_longer_for_it(tmp_path: Path) -> None:
    code = "import json; print(json.dumps({'description': 'x'}), flush=True)"
    speed = {"first_token_seconds": 1.0, "decode_seconds": 3.0}
    for recomputes, seconds in ((False, 4 * 1.0 + 3.0), (True, 4 * 1.0 + 4 * 3.0)):
        contender = Contender("x", (sys.executable, "-c", code), recomputes=recomputes)
        with Process(contender) as process:
            process.note_speed(100, speed)
            assert process.predicted_seconds(400) == seconds
