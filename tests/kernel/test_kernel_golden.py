"""The golden files of the custom layers, computed by the kernel's operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_library import AttentionShape, Library, MoeShape
from safetensors.numpy import load_file, safe_open

from mobilemoe_mlx.cpu_kernel.library import tensor
from mobilemoe_mlx.cpu_kernel.structures import Int4, MoeWeights

FOLDER = Path(__file__).parents[2] / "coreml" / "golden"
LIMIT = 1e-5  # of coreml/README.md, section 8, for float32


class Golden:
    """A file: its parameters, cases, and the entries of its weights by name."""

    def __init__(self, name: str) -> None:
        path = FOLDER / f"{name}.safetensors"
        self.tensors = load_file(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        self.parameters: dict[str, Any] = json.loads(metadata["parameters"])
        self.cases = list(json.loads(metadata["cases"]))
        self.weights = {
            key.rsplit(".", 1)[1]: value
            for key, value in self.tensors.items()
            if key.startswith(("weights.", "table."))
        }

    def entry(self, name: str) -> np.ndarray:
        return self.weights[name]

    def int4(self, name: str) -> Int4:
        return Int4(tensor(self.entry(f"{name}_codes")), tensor(self.entry(f"{name}_scales")))

    def input(self, case: str, name: str) -> np.ndarray:
        shared = self.tensors.get(f"all.inputs.{name}")
        found = self.tensors[f"{case}.inputs.{name}"] if shared is None else shared
        return np.ascontiguousarray(found)

    def output(self, case: str, name: str) -> np.ndarray:
        return self.tensors[f"{case}.outputs.{name}"]


def assert_close(y: np.ndarray, wanted: np.ndarray) -> None:
    assert y.shape == wanted.shape
    assert np.abs(y - wanted).max() <= LIMIT * np.abs(wanted).max()


def test_embedding(library: Library) -> None:
    golden = Golden("embedding")
    for case in golden.cases:
        y = library.runtime().embedding(
            golden.entry("table_codes"),
            golden.entry("table_scales"),
            golden.input(case, "tokens").astype(np.int32),
        )
        np.testing.assert_array_equal(y, golden.output(case, "residual"))


@pytest.mark.parametrize("name", ["attention", "attention-plain"])
def test_attention(library: Library, any_path: str, name: str) -> None:
    golden = Golden(name)
    p = golden.parameters
    runtime = library.runtime(cpu_path=any_path)
    heads, kv_heads, head_dim = p["heads"], p["kv_heads"], p["head_dim"]
    shape = AttentionShape(
        heads,
        kv_heads,
        head_dim,
        p["context"],
        int(p["qk_norm"]),
        p["qk_norm_eps"],
        p["score_scale"],
    )
    for case in golden.cases:
        residual = golden.input(case, "residual")
        caches = [
            np.ascontiguousarray(golden.input(case, f"{which}_cache")[p["layer"]])
            for which in ("key", "value")
        ]
        x = runtime.rms_norm(residual, golden.entry("norm"), p["norm_eps"])
        q, k, v = (
            runtime.linear(golden.entry(f"{n}_codes"), golden.entry(f"{n}_scales"), x).reshape(
                len(x), -1, head_dim
            )
            for n in "qkv"
        )
        position = int(golden.input(case, "position")[0])
        mixed, keys, values = runtime.attention(
            shape, q, k, v, position, *caches, golden.entry("periods")
        )
        y = residual + runtime.linear(
            golden.entry("o_codes"), golden.entry("o_scales"), mixed.reshape(len(x), -1)
        )
        assert_close(y, golden.output(case, "residual"))
        assert_close(keys, golden.output(case, "new_keys"))
        assert_close(values, golden.output(case, "new_values"))


@pytest.mark.parametrize("name", ["experts", "experts-plain"])
def test_experts(library: Library, any_path: str, name: str) -> None:
    golden = Golden(name)
    p = golden.parameters
    runtime = library.runtime(cpu_path=any_path)
    shape = MoeShape(
        p["hidden_size"],
        p["expert_width"],
        p["shared_width"],
        p["experts"],
        p["experts_per_token"],
        int(p["normalize"]),
        p["weight_scale"],
    )
    weights = MoeWeights(
        tensor(golden.entry("router")),
        tensor(golden.entry("expert_bias")),
        golden.int4("gate_up"),
        golden.int4("down"),
        golden.int4("shared_gate"),
        golden.int4("shared_up"),
        golden.int4("shared_down"),
    )
    for case in golden.cases:
        residual = golden.input(case, "residual")
        x = runtime.rms_norm(residual, golden.entry("norm"), p["norm_eps"])
        assert_close(residual + runtime.moe_ffn(shape, weights, x), golden.output(case, "residual"))


@pytest.mark.parametrize("name", ["head-last", "head-all"])
def test_head(library: Library, any_path: str, name: str) -> None:
    golden = Golden(name)
    p = golden.parameters
    for case in golden.cases:
        residual = golden.input(case, "residual")
        if p["logits"] == "last":
            residual = np.ascontiguousarray(residual[-1:])
        y = library.runtime(cpu_path=any_path).head(
            residual,
            golden.entry("norm"),
            p["norm_eps"],
            golden.entry("table_codes"),
            golden.entry("table_scales"),
        )
        assert_close(y, golden.output(case, "logits"))


def test_unpack(library: Library) -> None:
    """All 256 bytes, as rows of a table."""
    tensors = load_file(FOLDER / "unpack.safetensors")
    codes, scales, values = (
        next(t for name, t in tensors.items() if name.endswith(part))
        for part in ("codes", "scales", "values")
    )
    tokens = np.arange(len(codes), dtype=np.int32)
    y = library.runtime().embedding(codes, scales, tokens)
    np.testing.assert_array_equal(y, values)


def test_rotate(library: Library) -> None:
    """The published periods up to position 8,191, through the attention's new keys."""
    tensors = load_file(FOLDER / "rotate.safetensors")
    find = {name.rsplit(".", 1)[-1]: t for name, t in tensors.items()}
    x, head_dim = find["x"], find["x"].shape[-1]
    shape = AttentionShape(1, 1, head_dim, 8192, 0, 0.0, 1.0)
    cache = np.zeros((1, 8192, head_dim), np.float32)
    for row, position in enumerate(find["positions"].astype(int)):
        head = np.ascontiguousarray(x[row : row + 1])
        _, keys, _ = library.runtime().attention(
            shape, head, head, head, int(position), cache, cache, find["periods"]
        )
        assert np.abs(keys[0, 0] - find["rotated"][row, 0]).max() <= 1e-6 * np.abs(x).max()
