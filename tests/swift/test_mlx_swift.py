"""The model for mlx-swift-lm, built on Linux for the CPU, against this package's logits.

Runs where MOBILEMOE_MLX_SOURCES names a folder with the sources of MLX's Swift packages
(coreml/MLXSwift/README.md says how to get them).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_swift_build
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mobilemoe_mlx.adapters.adapter_file import save_adapter
from mobilemoe_mlx.adapters.attach import attach
from mobilemoe_mlx.adapters.base_digest import base_digest
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.checkpoint.load_save import load_model

# Enough of them for the routed experts' sorted way: 2 experts each.
TOKENS = [7, 3, 250, 411, 9, 9, 88, 17, 301, 479, 0, 5] * 3


@pytest.fixture(scope="module")
def logits_program() -> Path:
    """Compiles MLX's Swift packages once, which takes some minutes; later runs take seconds."""
    sources = os.environ.get("MOBILEMOE_MLX_SOURCES")
    if sources is None:
        pytest.skip(
            "MOBILEMOE_MLX_SOURCES names no folder with the sources of MLX's Swift packages"
        )
    return mlx_swift_build.build(Path(sources), Path(sources) / "build")


def logits(logits_program: Path, folder: Path, out: Path, *adapter: Path) -> dict[str, mx.array]:
    tokens = ",".join(map(str, TOKENS))
    done = subprocess.run(
        [logits_program, folder, out, tokens, *adapter], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return mx.load(str(out))


def relative(found: mx.array, expected: mx.array) -> float:
    return float(mx.abs(found - expected).max() / mx.abs(expected).max())


@pytest.fixture(params=["bf16_folder", "int4_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_logits(logits_program: Path, folder: Path, tmp_path: Path) -> None:
    """All at once, in parts with a cache, and what mlx-swift-lm generates with the model."""
    model = load_model(folder, mx.float32)
    expected = model(mx.array([TOKENS]))
    found = logits(logits_program, folder, tmp_path / "out.safetensors")
    assert relative(found["whole"], expected) < 1e-4
    assert relative(found["steps"], expected) < 1e-4
    assert relative(found["session"], expected[0, -1]) < 1e-4
    tokens = list(TOKENS)
    for _ in range(8):
        tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1])))
    assert found["greedy"].tolist() == tokens[-8:]


def test_an_adapter(logits_program: Path, folder: Path, tmp_path: Path) -> None:
    """Of linear layers and of experts, with selection biases that training moved."""
    model = load_model(folder, mx.float32)
    before = model(mx.array([TOKENS]))
    moved = load_model(folder, mx.float32)
    config = AdapterConfig(rank=4, alpha=8.0)
    attach(model, config)
    drawn: dict[str, Any] = {}
    for number, (name, value) in enumerate(tree_flatten(model.trainable_parameters())):
        drawn[name] = mx.random.normal(value.shape, scale=0.1, key=mx.random.key(number))
    bias = "model.layers.1.feed_forward.expert_bias"
    drawn[bias] = mx.random.normal((7,), scale=0.1, key=mx.random.key(99))
    parameters = tree_unflatten(list(drawn.items()))
    model.update(parameters)
    moved.update(tree_unflatten([(bias, drawn[bias])]))
    save_adapter(tmp_path / "adapter", parameters, config, base_digest(folder), num_layers=2)
    expected = model(mx.array([TOKENS]))
    found = logits(logits_program, folder, tmp_path / "out.safetensors", tmp_path / "adapter")
    assert relative(expected, before) > 0.01
    assert relative(found["whole"], expected) < 1e-4
    assert relative(found["without"], moved(mx.array([TOKENS]))) < 1e-4
    # The sum is rounded, to INT4 by MLX's own rule.
    assert relative(found["fused"], expected) < (0.02 if folder.name == "bf16" else 0.5)
