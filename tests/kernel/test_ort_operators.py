"""The operators for ONNX Runtime against the kernel's own results and float64.

In ONNX Runtime and, on an emulated arm64 CPU, in a stand-in for it.
"""

from __future__ import annotations

import kernel_reference as reference
import numpy as np
import pytest
from kernel_library import Library, MoeShape
from kernel_reference import MoeTensors, Packed, activations, random_int4, relative_error
from ort_layers import EPS, Layer, moe_node, packed
from ort_nodes import Host, Node, Runtime
from test_kernel_golden import LIMIT, Golden
from test_kernel_operators import LIMITS, moe_weights

# Batches and tokens: one token, odd numbers around what tasks and tiles hold, more than a block.
SHAPES = [(1, 1), (1, 2), (2, 3), (1, 31), (3, 11), (1, 33)]


@pytest.mark.parametrize("precision", LIMITS)
def test_moe(library: Library, backend: Host | Runtime, precision: str) -> None:
    """The kernel's own bits, and float64."""
    rng = np.random.default_rng(1)
    d, w, shared, experts, slots = 96, 160, 224, 11, 3
    m = reference.random_moe(rng, d, w, shared, experts)
    norm = (1 + 0.1 * rng.standard_normal(d)).astype(np.float32)
    node = moe_node(m, norm, slots, precision=precision)
    for batch, tokens in SHAPES[::2] if isinstance(backend, Host) else (*SHAPES, (2, 300)):
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
    # Two products each in attention and in the feed-forward; what routing decides may not change.
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
    (y,) = backend.run(node, inputs)
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
