"""The kernel under the compiler's sanitizers: programs built with them, which must end well."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import kernel_programs
import numpy as np
import pytest
from kernel_reference import activations, random_int4
from ort_layers import Layer, moe_node, packed
from ort_nodes import Host, Node, NodeError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is compiled, one in it for each choice of sanitizers."""
    return tmp_path_factory.mktemp("sanitized")


def built(
    objects: Path, sanitizers: str, program: Path, *flags: str, more: Sequence[Path] = ()
) -> str:
    """`program`, `more` and every source of the kernel, with the sanitizers; skips without them.

    The kernel's objects are compiled once for each choice of sanitizers.
    """
    folder = objects / sanitizers
    folder.mkdir(exist_ok=True)
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler: install g++ or clang, or set CXX")
    sanitize = f"-fsanitize={sanitizers}"
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}\n", encoding="utf-8")
    probe = [compiler, sanitize, str(empty), "-o", str(folder / "empty")]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{compiler} comes without the libraries of {sanitize}")
    options = ["-O1", "-g", sanitize, "-fno-sanitize-recover=all", *flags]
    return str(kernel_programs.build(folder, compiler, program, options, [sanitize], more))


def test_threads(objects: Path) -> None:
    """Two sessions at once, tasks that are stolen, a session that is cancelled."""
    kernel_programs.run([built(objects, "thread", HERE / "two_sessions.cpp")])


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_experts_that_are_read(objects: Path, sanitizers: str) -> None:
    """Threads that read ahead, callbacks that fail, and the same bits as without."""
    kernel_programs.run([built(objects, sanitizers, HERE / "read_experts.cpp")])


def test_addresses_and_undefined_behaviour(objects: Path) -> None:
    """Random sizes through the C interface, with weights in buffers of exactly their size."""
    program = kernel_programs.KERNEL / "fuzz" / "fuzz_shapes.cpp"
    options = ("address,undefined", program, "-DMOBILEMOE_STANDALONE")
    kernel_programs.run([built(objects, *options), "40"])


def test_operators_for_onnx_runtime(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator, kind of cache and padding, with tensors of exactly their size."""
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # as in kernel_programs.run
    options = ("address,undefined", HERE / "ort_host.cpp")
    host = Host([built(objects, *options, more=kernel_programs.ORT_SOURCES)])
    layer = Layer(16, 2, 18, True)
    table = packed("table", random_int4(layer.rng, 37, layer.d))
    embedding = Node("Embedding", {}, {"x": np.int64}, table, {"y": np.float32})
    host.run(embedding, {"x": np.array([[0, 36]])})
    with pytest.raises(NodeError, match="token 0 is 37"):
        host.run(embedding, {"x": np.array([[37]])})
    weights = {"norm": layer.norms[0], **table}
    head = Node("Head", {"norm_eps": 1e-5}, {"x": np.float32}, weights, {"y": np.float32})
    for precision in ("exact", "int16", "int8"):
        for tokens in (1, 3, 33):
            x = activations(layer.rng, 2 * tokens, layer.d).reshape(2, tokens, layer.d)
            mask = np.ones((2, tokens + 20), np.int64)
            mask[0, :5] = mask[1, 15:20] = 0  # on the left, and behind an earlier end
            host.run(head, {"x": x}, precision)
            host.run(moe_node(layer.moe, layer.norms[1], 2), {"x": x}, precision)
            for dtype, rows, in_place in [
                (np.float32, 20, False),
                (np.float16, 20, False),
                (np.float32, 60, True),
            ]:
                cache = layer.rng.standard_normal((2, 2, rows, 18)).astype(dtype)
                inputs = {"x": x, "attention_mask": mask, "past_key": cache, "past_value": cache}
                y, *_ = host.run(layer.node(dtype, in_place), inputs, precision)
                assert np.isfinite(y).all()
    host.close()
    assert host.process.returncode == 0
