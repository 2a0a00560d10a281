"""Mistakes in graphs, calls and settings of the operators for ONNX Runtime: one sentence each.

And sessions side by side: their threads, and what they compute at once.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import ort_nodes
import pytest
from kernel_reference import activations, random_int4
from ort_layers import Layer, moe_node, packed
from ort_nodes import Host, Node, NodeError, Runtime

from mobilemoe_mlx import onnx_operators
from mobilemoe_mlx.errors import UserError


def changed(node: Node, **weights: np.ndarray | None) -> Node:
    """The node with other initializers; None: it becomes an input."""
    node.weights = {name: weights.get(name, array) for name, array in node.weights.items()}
    return node


def test_mistakes_are_sentences(backend: Host | Runtime) -> None:
    """At creation: sizes that do not fit, attributes missing or wrong, unknown settings."""
    layer = Layer(6, 2, 16, True)
    m, norm = layer.moe, layer.norms[1]
    x = {"x": np.zeros((1, 2, layer.d), np.float32)}
    half = m.down.codes[:, :, ::2].copy()
    mistakes = [
        (
            changed(moe_node(m, norm, 2), down_codes=half),
            r"down_codes has the shape \[7, 64, 24\]; it must be \[7, 64, 48\]",
        ),
        (
            changed(moe_node(m, norm, 2), norm=norm[:-1]),
            r"norm has the shape \[95\]; it must be \[96\]",
        ),
        (changed(moe_node(m, norm, 2), router=m.router[0]), r"router has the shape \[96\]"),
        (moe_node(m, norm, 8), r"num_experts_per_tok is 8: it must be 1 to num_local_experts"),
        (moe_node(m, norm, 2, precision="int4"), r'the precision "int4" is unknown: exact, int16'),
        (moe_node(m, norm, 2, precision="x" * 100), r"the precision .* is unknown"),
        (moe_node(m, norm, 2, norm_eps=0.0), r"the attribute norm_eps is 0: it must be above 0"),
    ]
    for node, sentence in mistakes:
        with pytest.raises(NodeError, match=r'mobilemoe::MoE "node": ' + sentence):
            backend.run(node, x)
    missing = moe_node(m, norm, 2)
    missing.attributes = {k: v for k, v in missing.attributes.items() if k != "experts_per_token"}
    with pytest.raises(NodeError, match="the attribute experts_per_token, an integer, is missing"):
        backend.run(missing, x)
    for threads, sentence in [("0", "from 1 to 16"), ("two", "from 1 to 16"), ("17", "1 to 16")]:
        with pytest.raises(NodeError, match=sentence):
            backend.run(moe_node(m, norm, 2), x, threads=threads)
    with pytest.raises(NodeError, match='precision "low" is unknown'):
        backend.run(moe_node(m, norm, 2), x, precision="low")


def test_mistakes_in_a_call_are_sentences(backend: Host | Runtime) -> None:
    layer = Layer(6, 2, 16, True)
    with pytest.raises(NodeError, match=r"x has the shape \[1, 2, 64\]; its last size must be 96"):
        backend.run(moe_node(layer.moe, layer.norms[1], 2), {"x": np.zeros((1, 2, 64), np.float32)})

    def inputs(tokens: tuple[int, ...], mask: tuple[int, ...], *rows: int) -> dict[str, np.ndarray]:
        return {
            "x": np.zeros((*tokens, layer.d), np.float32),
            "attention_mask": np.ones(mask, np.int64),
            "past_key": layer.empty(1, rows[0], np.float32),
            "past_value": layer.empty(1, rows[-1], np.float32),
        }

    good = inputs((1, 2), (1, 5), 3)
    mistakes = [
        (inputs((2,), (1, 5), 3), r"x has the shape \[2, 96\]; \[batch, tokens, 96\]"),
        (inputs((1, 2), (1, 1), 3), r"attention_mask has the shape \[1, 1\]"),
        (inputs((1, 2), (2, 5), 3), r"attention_mask has the shape \[2, 5\]"),
        (inputs((1, 2), (1, 9), 3), "covers 7 past positions; past_key has 3"),
        (inputs((1, 2), (1, 5), 3, 4), r"past_value has the .* must be \[1, 2, 3, 16\]"),
        (inputs((1, 2), (1, 402), 400), "reaches position 401; the .* context has 400 positions"),
        (
            good | {"past_key": layer.empty(2, 3, np.float32)},
            r"past_key has the shape \[2, 2, 3, 16",
        ),
        (good | {"past_key": np.zeros(3, np.float32)}, r"past_key has the shape \[3\]"),
    ]
    for wrong, sentence in mistakes:
        with pytest.raises(NodeError, match=r'mobilemoe::DecoderLayer "node": .*' + sentence):
            backend.run(layer.node(np.float32), wrong)
    table = packed("table", random_int4(layer.rng, 10, 32))
    node = Node("Embedding", {}, {"tokens": np.int64}, table, {"y": np.float32})
    for token in (10, -1):
        with pytest.raises(NodeError, match=f"token 1 is {token}: the vocabulary has ids 0 to 9"):
            backend.run(node, {"tokens": np.array([3, token], np.int64)})


def test_what_onnx_runtime_refuses_itself(runtime: Runtime) -> None:
    """Types, and weights that are no initializers."""
    layer = Layer(6, 2, 16, True)
    node = changed(
        moe_node(layer.moe, layer.norms[1], 2),
        gate_up_codes=layer.moe.gate_up.codes.astype(np.int32),
    )
    x = {"x": np.zeros((1, 2, layer.d), np.float32)}
    with pytest.raises(NodeError, match=r"tensor\(int32\).*is invalid"):
        runtime.run(node, x)
    node = moe_node(layer.moe, layer.norms[1], 2)
    node.inputs = {"x": np.float32, "norm": np.float32}
    node.weights = {name: array for name, array in node.weights.items() if name != "norm"}
    with pytest.raises(NodeError, match=r"norm \(input 1\) must be an initializer of the graph"):
        runtime.run(node, x | {"norm": layer.norms[1]})


def test_a_library_that_was_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_operators, "_PATH", tmp_path / "none.so")
    with pytest.raises(
        UserError, match=r"The operators for ONNX Runtime are not there: .*--form portable"
    ):
        onnx_operators.library_path()


def test_a_runtime_that_is_too_old(arm64_host: list[str]) -> None:
    host = Host(arm64_host, api_version=17)
    layer = Layer(6, 2, 16, True)
    with pytest.raises(NodeError, match=r"need ONNX Runtime 1\.18 or later; this is a test's"):
        host.run(moe_node(layer.moe, layer.norms[1], 2), {"x": np.zeros((1, 1, 96), np.float32)})
    host.close()


def test_sessions_at_once_and_their_threads(runtime: Runtime) -> None:
    """Sessions of the same options share a pool; threads end with their sessions."""
    layer = Layer(6, 2, 16, True)
    nodes = [moe_node(layer.moe, layer.norms[1], 2, precision=p) for p in ("exact", "int8")]
    for number, node in enumerate(nodes):
        node.inputs, node.outputs = {f"x{number}": np.float32}, {f"y{number}": np.float32}
        node.weights = {f"{name}{number}": array for name, array in node.weights.items()}

    def threads() -> int:
        gc.collect()
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads are counted where Linux lists them")
    x = {f"x{n}": activations(layer.rng, 40, layer.d)[None] for n in range(2)}
    shared = ort_nodes.options({"threads": "4"})
    before = threads()
    sessions = [ort_nodes.open_session(nodes, shared) for _ in range(2)]
    assert threads() == before + 3
    sessions.append(ort_nodes.open_session(nodes, ort_nodes.options({"threads": "3"})))
    assert threads() == before + 5
    wanted = sessions[0].run(None, x)
    failures: list[BaseException] = []

    def work(session: Any) -> None:
        try:
            for _ in range(20):
                for y, expected in zip(session.run(None, x), wanted, strict=True):
                    np.testing.assert_array_equal(y, expected)
        except BaseException as error:
            failures.append(error)

    workers = [
        threading.Thread(target=work, args=(session,)) for session in [*sessions, sessions[0]]
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    sessions.clear()
    workers.clear()
    assert threads() == before
