"""Properties of the decoder: causality, caches, routing rules, names, wrapping of layers."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from small_model import small_args

from mobilemoe_mlx.config import PRESETS, ModelArgs, RopeScaling
from mobilemoe_mlx.model import Attention, LayerTrace, Model, Router, rope_periods
from mobilemoe_mlx.quantized import int4_model, quantize_model, quantize_parameters

ARGS = small_args()


def random_model(seed: int = 0) -> Model:
    mx.random.seed(seed)
    model = Model(ARGS)
    for layer in model.layers:
        layer.feed_forward.expert_bias = 0.1 * mx.random.normal((ARGS.num_local_experts,))
    mx.eval(model.parameters())
    return model


def some_tokens(batch: int, length: int) -> mx.array:
    return mx.random.randint(0, ARGS.vocab_size, (batch, length), key=mx.random.key(5))


def relative_error(measured: mx.array, reference: mx.array) -> float:
    return (mx.abs(measured - reference).max() / mx.abs(reference).max()).item()


@pytest.fixture(scope="module", params=["float", "int4"])
def model(request: pytest.FixtureRequest) -> Model:
    return random_model() if request.param == "float" else quantize_model(random_model())


@pytest.mark.parametrize("chunks", [[1] * 40, [40], [17, 1, 22], [39, 1]])
def test_decoding_agrees_with_prefill(model: Model, chunks: list[int]):
    tokens = some_tokens(2, 40)
    reference = model(tokens)
    cache, start, parts = model.make_cache(), 0, []
    for chunk in chunks:
        parts.append(model(tokens[:, start : start + chunk], cache))
        start += chunk
    assert relative_error(mx.concatenate(parts, axis=1), reference) < 1e-5


def test_rows_of_a_batch_are_independent(model: Model):
    tokens = some_tokens(3, 30)
    together = model(tokens)
    for row in range(3):
        assert relative_error(model(tokens[row : row + 1]), together[row : row + 1]) < 1e-5


def test_the_future_is_not_seen(model: Model):
    tokens = some_tokens(1, 40)
    changed = mx.concatenate([tokens[:, :25], (tokens[:, 25:] + 1) % ARGS.vocab_size], axis=1)
    ours, theirs = model(tokens), model(changed)
    assert relative_error(theirs[:, :25], ours[:, :25]) < 1e-5
    assert relative_error(theirs[:, 25:], ours[:, 25:]) > 1e-2


def test_a_document_mask_separates_packed_documents():
    model = random_model()
    first, second = some_tokens(1, 30)[:, :13], some_tokens(1, 30)[:, 13:]
    packed = mx.concatenate([first, second], axis=1)
    document = mx.arange(30) >= 13
    mask = (document[:, None] == document[None]) & mx.tri(30, dtype=mx.bool_)
    hidden = model.model(packed, mask=mask[None, None])
    assert relative_error(hidden[:, :13], model.model(first)) < 1e-5
    # RoPE is relative: the second document's positions may start at 13.
    assert relative_error(hidden[:, 13:], model.model(second)) < 1e-5


def test_only_distances_between_positions_matter():
    attention = Attention(ARGS)
    heads = mx.random.normal((1, 1, 4, ARGS.head_dim))
    for far in (100, 200):
        near_q, near_k = attention.rotate(heads, 0), attention.rotate(heads, 7)
        far_q, far_k = attention.rotate(heads, far), attention.rotate(heads, far + 7)
        near, distant = (q @ k.swapaxes(-1, -2) for q, k in ((near_q, near_k), (far_q, far_k)))
        assert mx.allclose(near, distant, atol=1e-3)


def numpy_routing(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    scores = 1 / (1 + np.exp(-(x.astype(np.float64) @ weight.T.astype(np.float64))))
    experts = np.argsort(-(scores + bias), axis=-1, kind="stable")[:, :slots]
    weights = np.take_along_axis(scores, experts, axis=-1)
    return experts, 2.5 * weights / weights.sum(-1, keepdims=True)


def test_experts_are_chosen_by_biased_and_weighted_by_unbiased_scores():
    mx.random.seed(0)
    router = Router(ARGS)
    x = mx.random.normal((500, ARGS.hidden_size))
    bias = 0.3 * mx.random.normal((ARGS.num_local_experts,))
    routing = router(x, bias)
    experts, weights = numpy_routing(*(np.array(a) for a in (x, router.weight, bias)), 4)
    np.testing.assert_array_equal(np.array(routing.experts), experts)
    np.testing.assert_allclose(np.array(routing.weights), weights, rtol=1e-5)
    unbiased = np.array(router(x, mx.zeros_like(bias)).experts)
    assert (np.sort(unbiased) != np.sort(experts)).any()  # the biases matter here


def test_ties_go_to_the_lower_index():
    router = Router(PRESETS["S"])
    router.weight = mx.zeros_like(router.weight)  # every score is 1/2
    bias = mx.zeros((60,))
    bias[41] = 0.25
    routing = router(mx.random.normal((300, 768)), bias)
    assert routing.experts.tolist() == [[41, 0, 1, 2]] * 300
    np.testing.assert_allclose(np.array(routing.weights), 2.5 / 4, rtol=1e-6)


def test_the_router_computes_in_float32_whatever_it_is_given():
    mx.random.seed(0)
    router = Router(ARGS)
    x = mx.random.normal((50, ARGS.hidden_size)).astype(mx.bfloat16)
    bias = mx.zeros((ARGS.num_local_experts,), mx.bfloat16)
    routing = router(x, bias)
    wide = router(x.astype(mx.float32), bias.astype(mx.float32))
    assert routing.logits.dtype == routing.weights.dtype == mx.float32
    assert mx.array_equal(routing.logits, wide.logits)


def test_published_rope_stretches_long_wavelengths_only():
    args = PRESETS["S"]
    for pair, period in enumerate(rope_periods(args).tolist()):
        plain = 500000.0 ** (pair / 32)
        expected = 16 * plain if 2 * math.pi * plain > 8192 else plain
        assert math.isclose(period, expected, rel_tol=1e-6)


@pytest.mark.parametrize("low, high", [(1.0, 4.0), (0.5, 2.0)])
def test_rope_matches_transformers_for_unequal_factors(low: float, high: float):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = RopeScaling(
        factor=8.0,
        original_max_position_embeddings=256,
        low_freq_factor=low,
        high_freq_factor=high,
    )
    args = ModelArgs(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        intermediate_size_mlp=128,
        rope_scaling=scaling,
        max_position_embeddings=512,
    )
    config = LlamaConfig(
        head_dim=args.head_dim,
        max_position_embeddings=args.max_position_embeddings,
        rope_parameters={**scaling.to_dict(), "rope_theta": args.rope_theta},
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    np.testing.assert_allclose(1 / rope_periods(args), frequencies.numpy(), rtol=1e-6)


def test_published_names_load_in_both_layouts():
    source = random_model()
    tokens = some_tokens(1, 20)
    bare = {
        name.removesuffix(".weight") if ".experts." in name else name: value
        for name, value in tree_flatten(source.parameters())
    }
    for weights in (bare, dict(tree_flatten(source.parameters()))):  # without and with `.weight`
        copy = Model(ARGS)
        copy.load_weights(list(copy.sanitize(weights).items()), strict=True)
        assert mx.array_equal(copy(tokens), source(tokens))
    packed = quantize_parameters(source.parameters())
    loaded = int4_model(ARGS)
    loaded.load_weights(list(loaded.sanitize(packed).items()), strict=True)
    assert mx.array_equal(loaded(tokens), quantize_model(source)(tokens))


def loss_of(model: Model, tokens: mx.array, wrap: object = None) -> mx.array:
    logits = model.logits(model.model(tokens[:, :-1], wrap=wrap))
    return nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean")


def checkpointed(layer: nn.Module) -> object:
    """The layer, recomputed in the backward pass."""

    @mx.checkpoint
    def inner(parameters: dict, *inputs: object) -> object:
        layer.update(parameters)
        return layer(*inputs)

    return lambda *inputs: inner(layer.trainable_parameters(), *inputs)


def test_recomputed_layers_give_the_same_gradients():
    model, tokens = random_model(), some_tokens(2, 33)
    step = nn.value_and_grad(model, loss_of)
    loss, gradients = step(model, tokens)
    wrapped_loss, wrapped = step(model, tokens, checkpointed)
    assert wrapped_loss.item() == loss.item()
    expected = dict(tree_flatten(gradients))
    for name, gradient in tree_flatten(wrapped):
        assert relative_error(gradient, expected[name]) < 1e-5, name


def test_a_compiled_step_gives_the_same_gradients():
    model, tokens = random_model(), some_tokens(2, 33)
    step = nn.value_and_grad(model, loss_of)
    expected = dict(tree_flatten(step(model, tokens)[1]))
    compiled = mx.compile(lambda t: step(model, t)[1], inputs=model.state)
    for name, gradient in tree_flatten(compiled(tokens)):
        assert relative_error(gradient, expected[name]) < 1e-5, name


def test_selection_biases_are_not_trained():
    model = random_model()
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert names and not [name for name in names if name.endswith("expert_bias")]


def test_the_trace_holds_every_layer():
    model, tokens = random_model(), some_tokens(2, 10)
    traced: list[LayerTrace] = []
    hidden = model.model(tokens, trace=traced)
    assert len(traced) == ARGS.num_hidden_layers
    assert mx.array_equal(model.model.norm(traced[-1].hidden), hidden)
    for layer in traced:
        assert layer.routing.experts.shape == (20, 4)
        assert layer.routing.logits.shape == (20, ARGS.num_local_experts)
