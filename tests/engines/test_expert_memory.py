"""Routed experts that are read when they are needed: the same bits, in little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.checkpoint.rewrite import convert
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.engines import open_engine
from mobilemoe_mlx.engines.cpu import CPUEngine
from mobilemoe_mlx.errors import UserError

pytestmark = pytest.mark.usefixtures("kernel_is_built")

ROOT = Path(__file__).parents[2]
TOKENS = np.random.default_rng(4).integers(0, 480, 90).tolist()


def opened(folder: Path, **options: object) -> CPUEngine:
    engine = open_engine(folder, "cpu", **options)
    assert isinstance(engine, CPUEngine)
    return engine


def conversation(engine: CPUEngine) -> np.ndarray:
    """Logits of a prompt, of tokens one by one, and of another way on after a rewind."""
    session = engine.session()
    logits = [session.feed(TOKENS[:60], all_logits=True)]
    logits += [session.feed([token]) for token in TOKENS[60:]]
    session.rewind(30)
    logits.append(session.feed(TOKENS[::-1][:40], all_logits=True))
    return np.concatenate(logits)


def least_memory(folder: Path) -> int:
    """By the message for too little; its layers have experts of d w values, 1.6875 bytes each."""
    with pytest.raises(UserError, match="1 bytes of memory for experts are too few") as raised:
        opened(folder, expert_memory=1)
    return int(str(raised.value).split()[-2])


@pytest.mark.parametrize("precision", ["exact", "int16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits(
    int4_folder: Path, tiny_args: ModelArgs, precision: str, threads: int
) -> None:
    how = {"precision": precision, "threads": threads}
    wanted = conversation(opened(int4_folder, **how))
    least = least_memory(int4_folder)
    values = tiny_args.hidden_size * tiny_args.intermediate_size
    expert = values * 27 // 16  # 3 values of half a byte, with a scale of 2 bytes for 32
    assert 0 <= least - tiny_args.num_experts_per_tok * expert < 1000  # rounded up to lines
    count = tiny_args.num_hidden_layers * tiny_args.num_local_experts
    for memory in (least, least + expert, count * expert // 2, 10 * count * expert):
        engine = opened(int4_folder, expert_memory=memory, **how)
        np.testing.assert_array_equal(conversation(engine), wanted)
        reads = engine.expert_reads()
        assert reads is not None and reads["bytes_read"] == reads["misses"] * expert
        assert reads["misses"] >= count / 2
        if memory > count * expert:  # each expert is read once
            assert reads["misses"] <= count and reads["hits"] > 0
            assert engine.model.expert_counters.held == count


def test_shards_and_mlx_form(int4_folder: Path, tmp_path: Path) -> None:
    wanted = conversation(opened(int4_folder))
    convert(int4_folder, tmp_path / "shards", max_shard_bytes=50_000)
    convert(int4_folder, tmp_path / "mlx", to="mlx")
    for name in ("shards", "mlx"):
        engine = opened(tmp_path / name, expert_memory=20_000)
        np.testing.assert_array_equal(conversation(engine), wanted)
        assert not [tensor for tensor in engine.tensors.arrays if ".experts." in tensor]


def test_too_little_memory_is_told_with_what_is_needed(int4_folder: Path) -> None:
    least = least_memory(int4_folder)
    with pytest.raises(UserError, match=f"1000 bytes .* too few: .* at least {least} bytes"):
        opened(int4_folder, expert_memory=1000)


def test_a_file_that_is_cut_short(int4_folder: Path, tmp_path: Path) -> None:
    """A shard with experts alone, which nothing maps: reading it fails in the middle of a feed."""
    convert(int4_folder, tmp_path / "it", max_shard_bytes=10_000)
    wanted = conversation(opened(tmp_path / "it"))
    engine = opened(tmp_path / "it", expert_memory=least_memory(int4_folder))
    session = engine.session()
    index = json.loads((tmp_path / "it" / "model.safetensors.index.json").read_text("utf-8"))
    name = index["weight_map"]["model.layers.1.feed_forward.experts.gate_up_qweight"]
    path = tmp_path / "it" / name
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(1000)
    message = f"{name}: expert . of layer 1 cannot be read: the file became shorter.*Copy"
    with pytest.raises(UserError, match=message):
        session.feed(TOKENS)
    assert session.position == 0
    with path.open("r+b") as file:  # the same file, whole again
        file.write(content)
    np.testing.assert_array_equal(conversation(engine), wanted)
    path.unlink()  # an open file stays
    np.testing.assert_array_equal(session.feed(TOKENS[:60], True), wanted[:60])


def test_without_the_page_cache(int4_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(int4_folder, tmp_path / "it")
    engine = opened(tmp_path / "it", expert_memory=20_000)
    assert engine.expert_files is not None
    engine.expert_files.keep_pages(False)
    np.testing.assert_array_equal(conversation(engine), conversation(opened(int4_folder)))


_PEAK = """
import sys
from mobilemoe_mlx.engines import open_engine
from mobilemoe_mlx.memory import peak_memory_bytes
memory = None if sys.argv[2] == "all" else int(sys.argv[2])
session = open_engine(sys.argv[1], "cpu", threads=2, expert_memory=memory).session(128)
before = peak_memory_bytes()
session.feed(list(range(64)))
for token in range(64):
    session.feed([token])
print(before, peak_memory_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory(tmp_path: Path) -> None:
    """128 MB of experts: where they are mapped they count, where they are read only the budget."""
    args = ModelArgs(
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=512,
        intermediate_size_mlp=64,
        num_local_experts=72,
        num_experts_per_tok=4,
        vocab_size=512,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=(2,),
    )
    write_random_checkpoint(tmp_path / "it", args, seed=0, quantized=True)
    experts = 4 * 72 * 512 * 512 * 27 // 16
    budget = experts // 8
    rest = (tmp_path / "it" / "model.safetensors").stat().st_size - experts

    def growth(memory: str) -> int:
        command = [sys.executable, "-c", _PEAK, str(tmp_path / "it"), memory]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        before, after = map(int, done.stdout.split())
        return after - before

    assert growth("all") > experts // 2
    # Besides the budget and the other weights: the session's scratch, for a block of 128 tokens.
    assert growth(str(budget)) < budget + rest + 10_000_000


def test_the_command_line(int4_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["generate", str(int4_folder), "--prompt", "import", "--max-tokens", "20"]
    assert main.main([*line, "--engine", "cpu"]) == 0
    wanted = capsys.readouterr().out
    assert main.main([*line, "--engine", "cpu", "--expert-memory", "20KB"]) == 0
    assert capsys.readouterr().out == wanted
    for extra, message in (
        (["--engine", "mlx", "--expert-memory", "1MB"], "engine 'mlx' has no option 'expert_mem"),
        (["--engine", "cpu", "--expert-memory", "7"], "7 bytes of memory for experts are too few"),
        (["--engine", "cpu", "--expert-memory", "0"], "0 bytes of memory for experts are too few"),
    ):
        assert main.main([*line, *extra]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.out == ""
    for size in ("some", "-5", "1x9", "5XB"):
        with pytest.raises(SystemExit, match="2"):
            main.main([*line, f"--expert-memory={size}"])
        assert f"'{size}' is no size; write it like 500MB" in capsys.readouterr().err
    bench = ["bench", str(int4_folder), "--contexts", "16", "--rounds", "1", "--engine", "cpu"]
    assert main.main([*bench, "--expert-memory", "20KB"]) == 0
    out = capsys.readouterr().out
    assert "experts found" in out and "memory for" in out


def test_a_bf16_checkpoint(bf16_folder: Path) -> None:
    with pytest.raises(UserError, match="is BF16"):
        opened(bf16_folder, expert_memory=10**6)
