"""The operators for ONNX Runtime against the kernel's own results and float64, in ONNX Runtime and, on an
emulated arm64 CPU, in a stand-in for it."""

from __future__ import annotations

import gc
import importlib.util
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated_arm64
import kernel_programs
import kernel_reference as reference
import numpy as np
import ort_nodes
import pytest
from kernel_library import Library, MoeShape
from kernel_reference import MoeTensors, Packed, activations, random_int4, relative_error
from ort_nodes import Host, Node, NodeError, Runtime
from test_kernel_golden import LIMIT, Golden
from test_kernel_operators import LIMITS, moe_weights

EPS = 1e-5
HAS_RUNTIME = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
NO_RUNTIME = "needs the extra onnx"


@pytest.fixture(scope="session")
def arm64_host(arm64_folder: Path) -> list[str]:
    """A command that starts the stand-in on an emulated CPU with all code paths."""
    emulator, program = emulated_arm64.build(
        arm64_folder, "ort_host.cpp", kernel_programs.ORT_SOURCES
    )
    return [emulator, "-cpu", "max", program]


@pytest.fixture(params=["onnxruntime", "portable", *emulated_arm64.CPU_PATHS])
def backend(request: pytest.FixtureRequest) -> Iterator[Host | Runtime]:
    """ONNX Runtime with the fastest code path and the plainest, and the code paths of arm64."""
    found: Host | Runtime
    if request.param in emulated_arm64.CPU_PATHS:
        found = Host(request.getfixturevalue("arm64_host"), request.param)
    else:
        found = runtime("" if request.param == "onnxruntime" else request.param)
    yield found
    found.close()


def runtime(cpu_path: str = "") -> Runtime:
    if not HAS_RUNTIME:
        pytest.skip(NO_RUNTIME)
    return Runtime(cpu_path)


@pytest.fixture(scope="session", autouse=True)
def _built(kernel_is_built: None) -> None:
    """All tests here need the library."""


def packed(name: str, weight: Packed) -> dict[str, np.ndarray]:
    return {f"{name}_codes": weight.codes, f"{name}_scales": weight.scales}


def feed_forward(m: MoeTensors, norm: np.ndarray, name: str = "norm") -> dict[str, np.ndarray]:
    return {
        name: norm,
        "router": m.router,
        "expert_bias": m.expert_bias,
        **packed("gate_up", m.gate_up),
        **packed("down", m.down),
        **packed("shared_gate", m.shared_gate),
        **packed("shared_up", m.shared_up),
        **packed("shared_down", m.shared_down),
    }


def moe_node(m: MoeTensors, norm: np.ndarray, slots: int, **attributes: Any) -> Node:
    settings = {
        "experts_per_token": slots,
        "routed_scaling_factor": 2.5,
        "norm_eps": EPS,
        "precision": "exact",
    }
    weights = feed_forward(m, norm)
    return Node("MoE", settings | attributes, {"x": np.float32}, weights, {"y": np.float32})


# Batches and tokens: one token, some, odd numbers around what tasks and tiles hold, more than a block.
SHAPES = [(1, 1), (1, 2), (2, 3), (1, 31), (3, 11), (1, 33), (2, 300)]


@pytest.mark.parametrize("precision", LIMITS)
def test_moe(library: Library, backend: Host | Runtime, precision: str) -> None:
    """The kernel's own bits, and float64."""
    rng = np.random.default_rng(1)
    d, w, shared, experts, slots = 96, 160, 224, 11, 3
    m = reference.random_moe(rng, d, w, shared, experts)
    norm = (1 + 0.1 * rng.standard_normal(d)).astype(np.float32)
    node = moe_node(m, norm, slots, precision=precision)
    for batch, tokens in SHAPES[:-1] if isinstance(backend, Host) else SHAPES:
        x = activations(rng, batch * tokens, d)
        (y,) = backend.run(node, {"x": x.reshape(batch, tokens, d)})
        assert y.shape == (batch, tokens, d)
        added = y.reshape(-1, d).astype(np.float64) - x
        normed = reference.rms_norm(x, EPS) * norm
        wanted, _ = reference.moe_ffn(m, normed, slots, True, 2.5)
        assert relative_error(added, wanted) < 2 * LIMITS[precision]  # two products
        if isinstance(backend, Runtime) and not backend.cpu_path and len(x) <= 512:
            own = library.runtime(precision)
            ffn = own.moe_ffn(
                MoeShape(d, w, shared, experts, slots, 1, 2.5),
                moe_weights(m),
                own.rms_norm(x, norm, EPS),
            )
            np.testing.assert_array_equal(y.reshape(-1, d), x + ffn)


def test_ties_go_to_the_lower_index(backend: Host | Runtime) -> None:
    rng = np.random.default_rng(2)
    m = reference.random_moe(rng, 64, 32, 64, 8)
    m.router[:] = m.router[0]
    m.expert_bias[:] = 0
    node = moe_node(m, np.ones(64, np.float32), 3, norm_topk_prob=0)
    x = activations(rng, 5, 64)
    (y,) = backend.run(node, {"x": x[None]})
    wanted, selected = reference.moe_ffn(m, reference.rms_norm(x, EPS), 3, False, 2.5)
    assert (selected == [0, 1, 2]).all()
    assert relative_error(y[0] - x.astype(np.float64), wanted) < LIMITS["exact"]


class Layer:
    """A random decoder layer, and what it computes in float64."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, qk_norm: bool) -> None:
        rng = self.rng = np.random.default_rng(heads)
        self.heads, self.kv_heads, self.head_dim, self.qk_norm = heads, kv_heads, head_dim, qk_norm
        self.d, self.context, self.slots = 96, 400, 2
        width, kv_width = heads * head_dim, kv_heads * head_dim
        self.linears = {
            name: random_int4(rng, rows, columns)
            for name, rows, columns in (
                ("q", width, self.d),
                ("k", kv_width, self.d),
                ("v", kv_width, self.d),
                ("o", self.d, width),
            )
        }
        self.moe = reference.random_moe(rng, self.d, 64, 160, 7)
        self.norms = (1 + 0.1 * rng.standard_normal((2, self.d))).astype(np.float32)
        self.periods = 500.0 ** (np.arange(head_dim // 2) * 2 / head_dim)

    def node(self, cache: type, in_place: bool = False, **attributes: Any) -> Node:
        angles = np.arange(self.context)[:, None] / self.periods
        rotation = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        settings = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "qk_norm": int(self.qk_norm),
            "experts_per_token": self.slots,
            "routed_scaling_factor": 2.5,
            "norm_eps": EPS,
            "precision": "exact",
        }
        weights = {"rotation": rotation, "input_norm": self.norms[0]}
        for name, weight in self.linears.items():
            weights |= packed(name, weight)
        weights |= feed_forward(self.moe, self.norms[1], "post_attention_norm")
        past = {"past_key": cache, "past_value": cache}
        present = {"present_key": cache, "present_value": cache}
        return Node(
            "DecoderLayer",
            settings | attributes,
            {"x": np.float32, "attention_mask": np.int64, **past},
            weights,
            {"y": np.float32, **present},
            dict(zip(present, past, strict=True)) if in_place else {},
        )

    def empty(self, batch: int, rows: int, dtype: type) -> np.ndarray:
        return np.full((batch, self.kv_heads, rows, self.head_dim), np.nan, dtype)

    def wanted(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x [T, d] -> (y, keys and values [kv_heads, T, head_dim])."""
        at = np.arange(len(x))
        x = x.astype(np.float64)
        normed = reference.rms_norm(x, EPS) * self.norms[0]
        q, k, v = (
            (normed @ self.linears[name].values.T).reshape(len(x), -1, self.head_dim)
            for name in "qkv"
        )
        q, k = (reference.rotate(a, at, self.periods) for a in (q, k))
        if self.qk_norm:
            q, k = (reference.rms_norm(a, EPS) for a in (q, k))
        k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
        mixed = reference.attention(q, k, v, 0).reshape(len(x), -1)
        x = x + mixed @ self.linears["o"].values.T
        normed = reference.rms_norm(x, EPS) * self.norms[1]
        return x + reference.moe_ffn(self.moe, normed, self.slots, True, 2.5)[0], k, v


# Across the kernel's blocks of 16 and chunks of 256 positions, few tokens and many.
CUTS = [(0, 1), (1, 15), (15, 18), (18, 19), (19, 280), (280, 281), (281, 287), (287, 300)]


@pytest.mark.parametrize("form", ["growing", "with room", "in place"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "norm"),
    [(6, 2, 16, True), (4, 4, 64, False), (16, 1, 18, True)],
)
def test_decoder_layer(
    backend: Host | Runtime, heads: int, kv_heads: int, head_dim: int, norm: bool, form: str
) -> None:
    """Any cut of a sequence, whatever the cache is; rows that must not be read are NaN."""
    layer = Layer(heads, kv_heads, head_dim, norm)
    if isinstance(backend, Host) and (backend.cpu_path != "neon" or (form == "growing") != norm):
        pytest.skip("attention on arm64 is that of the code path neon, and an emulator is slow")
    x = activations(layer.rng, CUTS[-1][1], layer.d)
    wanted, keys, values = layer.wanted(x)
    dtype, limit = (np.float16, 1e-3) if form == "with room" else (np.float32, LIMITS["exact"])
    node = layer.node(dtype, form == "in place")
    caches = [layer.empty(1, 0 if form == "growing" else 310, dtype) for _ in range(2)]
    for begin, end in CUTS:
        inputs = {
            "x": x[None, begin:end],
            "attention_mask": np.ones((1, end), np.int64),
            "past_key": caches[0],
            "past_value": caches[1],
        }
        y, *caches = backend.run(node, inputs)
        assert relative_error(y[0], wanted[begin:end]) < limit
        assert caches[0].shape[2] == (end if form == "growing" else 310)
    assert np.abs(caches[0][0, :, : len(x)] - keys).max() < limit * np.abs(keys).max()
    assert np.abs(caches[1][0, :, : len(x)] - values).max() < limit * np.abs(values).max()


@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_decoder_layer_in_other_precisions(backend: Host | Runtime, precision: str) -> None:
    layer = Layer(6, 2, 16, True)
    # Attention and the feed-forward on top of it, two products each: what routing decides may not change.
    layer.moe.expert_bias[:] = 10 * (np.arange(7) < 2)
    x = activations(layer.rng, 40, layer.d)
    wanted, _, _ = layer.wanted(x)
    cache = layer.empty(1, 0, np.float32)
    inputs = {"x": x[None], "attention_mask": np.ones((1, 40), np.int64)}
    inputs |= {"past_key": cache, "past_value": cache}
    # The entry of the session goes before the node's attribute.
    y, _, _ = backend.run(layer.node(np.float32), inputs, precision)
    assert LIMITS["exact"] < relative_error(y[0], wanted) < 4 * LIMITS[precision]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_a_batch_changes_nothing(backend: Host | Runtime, side: str) -> None:
    """Texts of 3, 20 and 9 tokens, then two tokens more of each: as each alone."""
    layer = Layer(6, 2, 16, True)
    lengths, longest, more = (3, 20, 9), 20, 2
    texts = [activations(layer.rng, length + more, layer.d) for length in lengths]
    node = layer.node(np.float32)
    mask = np.zeros((3, longest), np.int64)
    x = activations(layer.rng, 3 * longest, layer.d).reshape(3, longest, layer.d)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        place = slice(longest - length, longest) if side == "left" else slice(0, length)
        mask[row, place] = 1
        x[row, place] = text[:length]
    inputs = {"x": x, "attention_mask": mask}
    inputs |= {
        "past_key": layer.empty(3, 0, np.float32),
        "past_value": layer.empty(3, 0, np.float32),
    }
    found: list[list[np.ndarray]] = [[] for _ in texts]
    for step in range(more + 1):
        y, keys, values = backend.run(node, inputs)
        for row in range(3):
            found[row].append(y[row, mask[row] == 1] if step == 0 else y[row])
        if step == more:
            break
        new = [text[length + step] for text, length in zip(texts, lengths, strict=True)]
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
        inputs = {"x": np.stack(new)[:, None], "attention_mask": mask}
        inputs |= {"past_key": keys, "past_value": values}
    for text, parts in zip(texts, found, strict=True):
        wanted, _, _ = layer.wanted(text)
        assert relative_error(np.concatenate(parts), wanted) < LIMITS["exact"]


def test_embedding_and_head(backend: Host | Runtime) -> None:
    rng = np.random.default_rng(3)
    table = random_int4(rng, 301, 96)
    weights = packed("table", table)
    tokens = np.array([[0, 300, 7], [7, 1, 299]], np.int64)
    node = Node("Embedding", {}, {"tokens": np.int64}, weights, {"y": np.float32})
    (y,) = backend.run(node, {"tokens": tokens})
    np.testing.assert_array_equal(y, table.values[tokens].astype(np.float32))
    norm = (1 + 0.1 * rng.standard_normal(96)).astype(np.float32)
    for precision, limit in LIMITS.items():
        head = Node(
            "Head",
            {"norm_eps": 0.25, "precision": precision},
            {"x": np.float32},
            {"norm": norm, **weights},
            {"logits": np.float32},
        )
        for batch, count in [(1, 1), (2, 1), (1, 33), (3, 11)]:
            x = activations(rng, batch * count, 96)
            (logits,) = backend.run(head, {"x": x.reshape(batch, count, 96)})
            assert logits.shape == (batch, count, 301)
            wanted = (reference.rms_norm(x, 0.25) * norm) @ table.values.T
            assert relative_error(logits.reshape(-1, 301), wanted) < limit


def test_no_tokens(backend: Host | Runtime) -> None:
    layer = Layer(6, 2, 16, True)
    cache = layer.rng.standard_normal((1, 2, 5, 16)).astype(np.float32)
    inputs = {
        "x": np.zeros((1, 0, layer.d), np.float32),
        "attention_mask": np.ones((1, 5), np.int64),
    }
    y, keys, _ = backend.run(
        layer.node(np.float32), {**inputs, "past_key": cache, "past_value": cache}
    )
    assert y.shape == (1, 0, layer.d)
    np.testing.assert_array_equal(keys, cache)
    node = moe_node(layer.moe, layer.norms[1], 2)
    (y,) = backend.run(node, {"x": inputs["x"]})
    assert y.shape == (1, 0, layer.d)


@pytest.mark.parametrize("name", ["experts", "experts-plain"])
def test_golden_experts(backend: Host | Runtime, name: str) -> None:
    golden = Golden(name)
    p = golden.parameters
    entries = ("gate_up", "down", "shared_gate", "shared_up", "shared_down")
    parts = {e: Packed(golden.entry(f"{e}_codes"), golden.entry(f"{e}_scales")) for e in entries}
    bias = golden.entry("expert_bias").astype(np.float32)
    m = MoeTensors(golden.entry("router"), bias, **parts)
    node = moe_node(
        m,
        golden.entry("norm").astype(np.float32),
        p["experts_per_token"],
        norm_eps=float(p["norm_eps"]),
        norm_topk_prob=int(p["normalize"]),
        routed_scaling_factor=float(p["weight_scale"]),
    )
    for case in golden.cases:
        (y,) = backend.run(node, {"x": golden.input(case, "residual")[None]})
        assert_golden(y[0], golden.output(case, "residual"))


@pytest.mark.parametrize("name", ["attention", "attention-plain"])
def test_golden_attention(backend: Host | Runtime, name: str) -> None:
    """As a layer whose experts give nothing."""
    golden = Golden(name)
    p = golden.parameters
    d = golden.input(golden.cases[0], "residual").shape[1]
    rng = np.random.default_rng(4)
    m = reference.random_moe(rng, d, 32, 32, 2)
    for part in (m.down, m.shared_down):
        part.scales[:] = 0
    layer = Layer(p["heads"], p["kv_heads"], p["head_dim"], p["qk_norm"])
    layer.d, layer.moe, layer.context = d, m, p["context"]
    layer.norms = np.stack([golden.entry("norm").astype(np.float32), np.ones(d, np.float32)])
    layer.periods = golden.entry("periods").astype(np.float64)
    layer.linears = {
        n: Packed(golden.entry(f"{n}_codes"), golden.entry(f"{n}_scales")) for n in "qkvo"
    }
    own = {name: float(p[name]) for name in ("norm_eps", "qk_norm_eps", "score_scale")}
    node = layer.node(np.float32, **own)
    for case in golden.cases:
        x = golden.input(case, "residual")
        position = int(golden.input(case, "position")[0])
        caches = [
            np.ascontiguousarray(golden.input(case, f"{which}_cache")[p["layer"]])[None]
            for which in ("key", "value")
        ]
        inputs = {"x": x[None], "attention_mask": np.ones((1, position + len(x)), np.int64)}
        y, keys, values = backend.run(
            node, inputs | {"past_key": caches[0], "past_value": caches[1]}
        )
        new = slice(position, position + len(x))
        assert_golden(y[0], golden.output(case, "residual"))
        assert_golden(keys[0, :, new], golden.output(case, "new_keys"))
        assert_golden(values[0, :, new], golden.output(case, "new_values"))


def assert_golden(y: np.ndarray, wanted: np.ndarray) -> None:
    assert y.shape == wanted.shape
    assert np.abs(y - wanted).max() <= LIMIT * np.abs(wanted).max()


def changed(node: Node, **weights: np.ndarray | None) -> Node:
    """The node with other initializers; None: it becomes an input."""
    node.weights = {name: weights.get(name, array) for name, array in node.weights.items()}
    return node


def test_mistakes_are_sentences(backend: Host | Runtime) -> None:
    """At creation: sizes that do not fit, attributes that are missing or wrong, unknown settings."""
    layer = Layer(6, 2, 16, True)
    m, norm = layer.moe, layer.norms[1]
    x = {"x": np.zeros((1, 2, layer.d), np.float32)}
    half = m.down.codes[:, :, ::2].copy()
    mistakes = [
        (changed(moe_node(m, norm, 2), down_codes=half), r"down_codes has the shape \[7, 64, 24\]; it must be \[7, 64, 48\]"),
        (changed(moe_node(m, norm, 2), norm=norm[:-1]), r"norm has the shape \[95\]; it must be \[96\]"),
        (changed(moe_node(m, norm, 2), router=m.router[0]), r"router has the shape \[96\]"),
        (moe_node(m, norm, 8), r"num_experts_per_tok is 8: it must be 1 to num_local_experts \(7\)"),
        (moe_node(m, norm, 2, precision="int4"), r'the precision "int4" is unknown: exact, int16 and int8'),
        (moe_node(m, norm, 2, precision="x" * 100), r"the precision .* is unknown"),
        (moe_node(m, norm, 2, norm_eps=0.0), r"the attribute norm_eps is 0: it must be above 0"),
    ]  # fmt: skip
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
    good = {
        "x": np.zeros((1, 2, layer.d), np.float32),
        "attention_mask": np.ones((1, 5), np.int64),
        "past_key": layer.empty(1, 3, np.float32),
        "past_value": layer.empty(1, 3, np.float32),
    }
    mistakes = [
        ({"x": np.zeros((2, layer.d), np.float32)}, r"x has the shape \[2, 96\]; \[batch, tokens, 96\]"),
        ({"attention_mask": np.ones((1, 1), np.int64)}, r"attention_mask has the shape \[1, 1\]"),
        ({"attention_mask": np.ones((2, 5), np.int64)}, r"attention_mask has the shape \[2, 5\]"),
        ({"attention_mask": np.ones((1, 9), np.int64)}, "covers 7 past positions; past_key has 3"),
        ({"past_key": layer.empty(2, 3, np.float32)}, r"past_key has the shape \[2, 2, 3, 16\]; it must be"),
        ({"past_value": layer.empty(1, 4, np.float32)}, r"past_value has the shape .*; it must be \[1, 2, 3, 16\]"),
        ({"past_key": np.zeros(3, np.float32)}, r"past_key has the shape \[3\]"),
        (
            {"past_key": layer.empty(1, 400, np.float32), "past_value": layer.empty(1, 400, np.float32), "attention_mask": np.ones((1, 402), np.int64)},
            "reaches position 401; the model's context has 400 positions",
        ),
    ]  # fmt: skip
    for wrong, sentence in mistakes:
        with pytest.raises(NodeError, match=r'mobilemoe::DecoderLayer "node": .*' + sentence):
            backend.run(layer.node(np.float32), good | wrong)
    table = packed("table", random_int4(layer.rng, 10, 32))
    node = Node("Embedding", {}, {"tokens": np.int64}, table, {"y": np.float32})
    for token in (10, -1):
        with pytest.raises(NodeError, match=f"token 1 is {token}: the vocabulary has ids 0 to 9"):
            backend.run(node, {"tokens": np.array([3, token], np.int64)})


def test_what_onnx_runtime_refuses_itself() -> None:
    """Types, and weights that are no initializers."""
    layer = Layer(6, 2, 16, True)
    node = changed(
        moe_node(layer.moe, layer.norms[1], 2),
        gate_up_codes=layer.moe.gate_up.codes.astype(np.int32),
    )
    x = {"x": np.zeros((1, 2, layer.d), np.float32)}
    with pytest.raises(NodeError, match=r"tensor\(int32\).*is invalid"):
        runtime().run(node, x)
    node = moe_node(layer.moe, layer.norms[1], 2)
    node.inputs = {"x": np.float32, "norm": np.float32}
    node.weights = {name: array for name, array in node.weights.items() if name != "norm"}
    with pytest.raises(NodeError, match=r"norm \(input 1\) must be an initializer of the graph"):
        runtime().run(node, x | {"norm": layer.norms[1]})


def test_a_runtime_that_is_too_old(arm64_host: list[str]) -> None:
    host = Host(arm64_host, api_version=17)
    layer = Layer(6, 2, 16, True)
    with pytest.raises(NodeError, match=r"need ONNX Runtime 1\.18 or later; this is a test's"):
        host.run(moe_node(layer.moe, layer.norms[1], 2), {"x": np.zeros((1, 1, 96), np.float32)})
    host.close()


def test_sessions_at_once_and_their_threads() -> None:
    """Sessions of the same options share a pool, of others have their own; threads end with them."""
    runtime()
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
    del sessions, work
    workers.clear()
    assert threads() == before
