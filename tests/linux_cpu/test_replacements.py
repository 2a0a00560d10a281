"""SwiGLU, attention, the routed experts and whole models against the forms that a Mac runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from small_model import small_args

from mobilemoe_mlx import linux_cpu
from mobilemoe_mlx.data.packing import document_attention_mask
from mobilemoe_mlx.experts import Experts
from mobilemoe_mlx.linux_cpu import attention
from mobilemoe_mlx.linux_cpu.attention import causal_attention
from mobilemoe_mlx.linux_cpu.swiglu import swiglu
from mobilemoe_mlx.linux_cpu.top_k import top_k
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import quantize_model

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device().type != mx.DeviceType.cpu,
    reason="replaces MLX's own on the CPU of Linux only",
)


def plainly(call: Callable[[], Any]) -> Any:
    """The result of `call` with what a Mac runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linux_cpu.sys, "platform", "darwin")
        result = call()
        mx.eval(result)
    return result


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Each array of two trees differs by at most `tolerance` of its largest value, or of 1."""
    pairs = zip(tree_flatten(found), tree_flatten(expected), strict=True)
    for (name, value), (_, other) in pairs:
        difference = mx.abs(value - other).max().item()
        assert difference <= tolerance * max(mx.abs(other).max().item(), 1.0), name


def test_swiglu_and_its_gradient_in_float64():
    gate, up = mx.random.normal((2, 7, 33)) * 4
    exact_gate, exact_up = np.array(gate, np.float64), np.array(up, np.float64)
    s = 1 / (1 + np.exp(-exact_gate))
    np.testing.assert_allclose(np.array(swiglu(gate, up)), exact_gate * s * exact_up, rtol=2e-6)
    d_gate, d_up = mx.grad(lambda g, u: swiglu(g, u).sum(), argnums=(0, 1))(gate, up)
    d_exact = exact_up * s * (1 + exact_gate * (1 - s))
    np.testing.assert_allclose(np.array(d_gate), d_exact, atol=5e-6)
    np.testing.assert_allclose(np.array(d_up), exact_gate * s, rtol=2e-6, atol=1e-7)


def test_swiglu_of_other_types_is_mlx_own():
    gate, up = mx.random.normal((2, 40)).astype(mx.bfloat16)
    assert mx.array_equal(swiglu(gate, up), nn.silu(gate) * up)


# Lengths around the block of 128 queries, one token, and several blocks.
@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 300])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 1), (3, 3)])
def test_attention_and_its_gradient(length: int, documents: bool, heads: int, kv_heads: int):
    rng = np.random.default_rng(length)
    shapes = [(2, heads, length, 16), (2, kv_heads, length, 16), (2, kv_heads, length, 16)]
    q, k, v = (mx.array(rng.normal(size=shape).astype(np.float32)) for shape in shapes)
    mask = None
    if documents:
        mask = document_attention_mask(np.sort(rng.integers(0, 3, (2, length)), axis=1))
    weights = mx.array(rng.normal(size=shapes[0]).astype(np.float32))

    def ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return causal_attention(q, k, v, 0.25, mask)

    def plain(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        given = "causal" if mask is None else mask
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask=given)

    def and_gradients(attend: Callable[..., mx.array]) -> list[mx.array]:
        return [attend(q, k, v), *mx.vjp(attend, [q, k, v], [weights])[1]]

    assert_close(and_gradients(ours), and_gradients(plain), 1e-5)


def test_attention_in_float64(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_BLOCK", 4)
    q, k, v = mx.random.normal((3, 1, 2, 11, 8)) * 3
    scores = np.array(q, np.float64) @ np.array(k, np.float64).swapaxes(-1, -2) * 0.3
    scores = np.where(np.tri(11, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exact = weights / weights.sum(axis=-1, keepdims=True) @ np.array(v, np.float64)
    np.testing.assert_allclose(np.array(causal_attention(q, k, v, 0.3)), exact, atol=1e-5)


def test_a_token_never_sees_a_later_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_BLOCK", 4)
    q, k, v = mx.random.normal((3, 1, 2, 11, 8))
    later = mx.arange(11)[:, None] >= 7
    out = causal_attention(q, k, v, 0.3)
    changed = causal_attention(q, mx.where(later, 99.0, k), mx.where(later, mx.nan, v), 0.3)
    assert mx.array_equal(out[:, :, :4], changed[:, :, :4])  # blocks that end before
    keys = mx.where(later, 99.0, k)
    assert mx.allclose(out[:, :, :7], causal_attention(q, keys, v + 5 * later, 0.3)[:, :, :7])


@pytest.mark.parametrize("tokens", [16, 61, 200])
@pytest.mark.parametrize("skewed", [False, True])
def test_routed_experts_and_their_gradient(tokens: int, skewed: bool):
    mx.random.seed(tokens)
    layer = Experts(64, 32, 10)
    x, d_out = mx.random.normal((2, tokens, 64))
    weights = mx.random.uniform(shape=(tokens, 4))
    scores = mx.random.uniform(shape=(tokens, 10))
    if skewed:  # experts 0..3 nearly always, 8 and 9 never
        scores = scores - mx.where(mx.arange(10) < 4, 1.0, 0.0) * (mx.arange(tokens) > 2)[:, None]
        scores = scores + mx.where(mx.arange(10) >= 8, 9.0, 0.0)
    indices = mx.argsort(scores, axis=-1)[:, :4]

    def loss(parameters: Any, x: mx.array, weights: mx.array) -> mx.array:
        layer.update(parameters)
        return (layer.weighted_sum(x, indices, weights) * d_out).sum()

    step = mx.value_and_grad(loss, argnums=(0, 1, 2))
    parameters = layer.trainable_parameters()
    mx.eval(parameters)
    found = step(parameters, x, weights)
    assert_close(found, plainly(lambda: step(parameters, x, weights)), 1e-5)


@pytest.mark.parametrize("k", [1, 4, 12])
def test_top_k_gives_ties_to_the_lower_index(k: int):
    x = mx.random.randint(-3, 4, (500, 12)).astype(mx.float32)  # many ties
    found = top_k(x, k)
    assert found.dtype == mx.uint32
    np.testing.assert_array_equal(np.array(found), np.argsort(-np.array(x), kind="stable")[:, :k])
    assert mx.array_equal(found, plainly(lambda: top_k(x, k)))


@pytest.fixture(scope="module")
def model() -> Model:
    mx.random.seed(0)
    return Model(small_args())


def test_a_model_computes_the_same_logits(model: Model):
    tokens = mx.random.randint(0, model.args.vocab_size, (2, 150))
    assert_close({"logits": model(tokens)}, plainly(lambda: {"logits": model(tokens)}), 2e-5)


def test_a_prompt_read_with_a_cache_computes_the_same_logits(model: Model):
    tokens = mx.random.randint(0, model.args.vocab_size, (1, 40))
    for used in (model, quantize_model(model)):
        cache = used.make_cache()
        parts = [used(part, cache) for part in mx.split(tokens, [25, 26], axis=1)]
        whole = plainly(lambda used=used: {"logits": used(tokens)})
        assert_close({"logits": mx.concatenate(parts, axis=1)}, whole, 5e-5)


def test_a_bfloat16_model_runs_mlx_own(model: Model):
    half = Model(model.args)
    half.update(model.parameters())
    half.set_dtype(mx.bfloat16)
    tokens = mx.random.randint(0, model.args.vocab_size, (1, 40))
    assert mx.array_equal(half(tokens), plainly(lambda: half(tokens)))


def test_a_nan_reaches_the_logits(model: Model):
    damaged = Model(model.args)
    damaged.update(model.parameters())
    down = damaged.layers[0].feed_forward.experts.down_proj
    down.weight = mx.full(down.weight.shape, mx.nan)
    tokens = mx.random.randint(0, model.args.vocab_size, (1, 40))
    assert mx.isnan(damaged(tokens)).all().item()
