"""mlx-lm's own commands with adapters: it trains ours on a converted folder, and reads ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load
from test_adapter_commands import write_adapter

from mobilemoe_mlx.adapters.adapter_file import load_adapters, read_adapter
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.checkpoint.check import check
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.checkpoint.rewrite import convert

EXPERTS = "model.layers.1.feed_forward.experts.down_proj"


@pytest.fixture(scope="module", params=["bf16", "int4"])
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A published checkpoint and its converted copy."""
    base = request.getfixturevalue(f"{request.param}_folder")
    folder = tmp_path_factory.mktemp("mlx") / "model"
    convert(base, folder, to="mlx")
    return base, folder


def mlx_lm(command: str, *options: str | Path) -> str:
    """What a command of mlx-lm prints, run as a process."""
    words = [sys.executable, "-m", "mlx_lm", command, *map(str, options), "--trust-remote-code"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lora_trains_the_experts_and_we_read_what_it_trained(
    folders: tuple[Path, Path], tmp_path: Path
):
    base, converted = folders
    data, adapter = tmp_path / "data", tmp_path / "adapter"
    data.mkdir()
    for part in ("train", "valid"):
        lines = [json.dumps({"text": f"def f{n}(text): return text"}) for n in range(4)]
        (data / f"{part}.jsonl").write_text("\n".join(lines))
    options = ["--iters", "2", "--batch-size", "2", "--num-layers", "2", "--learning-rate", "0.01"]
    mlx_lm(
        "lora", "--model", converted, "--train", "--data", data, "--adapter-path", adapter, *options
    )
    read = read_adapter(adapter)
    assert EXPERTS in read.tensors and "model.layers.0.self_attn.q_proj" in read.tensors
    assert mx.abs(read.read(EXPERTS, 1.0)["lora_b"]).max().item() > 1e-3  # the gradient reached it
    model = load_model(base)
    tokens = mx.array([[1, 5, 9, 40]])
    before = model(tokens)
    load_adapters(model, [(adapter, 1.0)])
    assert not mx.allclose(model(tokens), before, atol=1e-3)


def test_generate_reads_our_adapters(folders: tuple[Path, Path], tmp_path: Path):
    base, converted = folders
    modules = ("attention", "shared_expert", "experts", "embedding")
    for layers in ("", "0"):  # named in mlx-lm's way, and by whole paths
        config = AdapterConfig(modules=modules, layers=layers)
        adapter = write_adapter(base, tmp_path / f"adapter{layers}", config)
        options = ["--prompt", "def indent", "--max-tokens", "4", "--ignore-chat-template"]
        plain = mlx_lm("generate", "--model", converted, *options)
        adapted = mlx_lm("generate", "--model", converted, "--adapter-path", adapter, *options)
        assert plain.split("=" * 10)[1] != adapted.split("=" * 10)[1]
        # The same layers with the same values: their own loader finds a place for each tensor.
        theirs = load(str(converted), adapter_path=str(adapter), trust_remote_code=True)[0]
        ours = load_model(converted, dtype=mx.float32)
        load_adapters(ours, [(adapter, 1.0)])
        tokens = mx.array([[1, 5, 9, 40]])
        found = theirs(tokens).astype(mx.float32)
        # Theirs computes in bfloat16, or in float16 on INT4.
        assert (mx.abs(found - ours(tokens)).mean() / mx.abs(ours(tokens)).mean()).item() < 0.03


def test_fuse_of_mlx_lm_fuses_the_experts(tmp_path: Path, bf16_folder: Path):
    converted, fused = tmp_path / "mlx", tmp_path / "fused"
    convert(bf16_folder, converted, to="mlx")
    adapter = write_adapter(bf16_folder, tmp_path / "adapter", AdapterConfig())
    mlx_lm("fuse", "--model", converted, "--adapter-path", adapter, "--save-path", fused)
    assert not check(fused)
    ours = load_model(bf16_folder)
    load_adapters(ours, [(adapter, 1.0)])
    weight = load_model(fused).layers[1].feed_forward.experts.down_proj.weight
    layer = ours.layers[1].feed_forward.experts.down_proj
    expected = layer.linear.weight + layer.scale * layer.lora_a @ layer.lora_b
    assert mx.allclose(weight, expected, atol=2.0**-8 * mx.abs(expected).max().item())
