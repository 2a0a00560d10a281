"""The INT4 format against numpy, against MLX's kernels, and against itself."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from small_model import small_args

from mobilemoe_mlx import int4
from mobilemoe_mlx.config import PRESETS, SCALE_RULES, ModelArgs, ScaleRule
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import (
    fake_quantize_parameters,
    float_model,
    quantize_model,
    quantize_parameters,
)

SHAPES = [(4, 32), (3, 5, 96), (1, 256)]


def numpy_quantize(weight: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric round to nearest in groups of 32, one group at a time."""
    rows = weight.reshape(-1, 32)
    codes, scales = np.zeros(rows.shape, np.int8), np.zeros(len(rows), np.float16)
    for index, row in enumerate(rows):
        if rule == "paper":  # arXiv 2605.27358: the range -8..7 is 15 steps
            scales[index] = np.float16(np.abs(row).max() / np.float32(7.5))
        else:  # wide enough for the largest positive value at 7 and the most negative at -8
            scales[index] = np.float16(max(row.max() / np.float32(7), row.min() / np.float32(-8)))
        if scales[index] > 0:
            code = np.rint(row / np.float32(scales[index]))
            codes[index] = np.clip(code, -8, 7)
    return codes.reshape(weight.shape), scales.reshape(*weight.shape[:-1], -1)


def weights(shape: tuple[int, ...], spread: float = 1.0) -> np.ndarray:
    """Random weights with groups of very different size, one of zeros, one one-sided."""
    rng = np.random.default_rng(sum(shape))
    out = rng.normal(size=shape) * spread
    groups = out.reshape(-1, 32)
    groups *= 10.0 ** rng.uniform(-3, 1, (len(groups), 1))
    groups[0] = 0
    groups[-1] = np.abs(groups[-1])
    return out.astype(np.float32)


def test_packing_is_the_published_byte_for_byte_layout():
    codes = mx.array([[3, -8, -1, 7]], mx.int8)
    assert int4.pack(codes).tolist() == [[0x83, 0x7F]]  # low nibble first, two's complement


def test_every_byte_unpacks_and_packs_to_itself():
    every = mx.arange(256).astype(mx.uint8)[None]
    codes = int4.unpack(every)
    assert int4.pack(codes).tolist() == every.tolist()
    pairs = {tuple(pair) for pair in np.array(codes).reshape(-1, 2).tolist()}
    assert pairs == {(low, high) for low in range(-8, 8) for high in range(-8, 8)}


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_form_is_exact_and_reversible(shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    packed = mx.array(rng.integers(0, 256, (*shape[:-1], shape[-1] // 2)).astype(np.uint8))
    scale = rng.normal(size=(*shape[:-1], shape[-1] // 32)).astype(np.float16)
    scale.flat[0] = 2.0**-24  # float16's smallest, subnormal
    scale.flat[-1] = 8188.0  # the largest whose bias, -8 x scale, is finite
    weight, scales = int4.affine_codes(packed), mx.array(scale)
    expected = int4.dequantize(int4.unpack(packed), mx.array(scale))
    by_mlx = mx.dequantize(
        weight,
        scales.astype(mx.float32),
        int4.affine_biases(scales).astype(mx.float32),
        group_size=32,
        bits=4,
    )
    assert mx.array_equal(by_mlx, expected)
    by_hand = np.array(int4.unpack(packed)) * np.repeat(scale.astype(np.float64), 32, axis=-1)
    np.testing.assert_array_equal(np.array(expected), by_hand)
    back = int4.from_affine(weight, scales)
    assert mx.array_equal(back.qweight, packed)
    assert np.array(back.scale).tobytes() == scale.tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spread", [1.0, 1e-5])
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_quantize_matches_numpy(shape: tuple[int, ...], spread: float, rule: ScaleRule):
    weight = weights(shape, spread)
    codes, scale = int4.quantize(mx.array(weight), rule)
    expected_codes, expected_scale = numpy_quantize(weight, rule)
    np.testing.assert_array_equal(np.array(scale), expected_scale)
    np.testing.assert_array_equal(np.array(codes), expected_codes)


@pytest.mark.parametrize("shape", SHAPES)
def test_quantising_twice_changes_nothing(shape: tuple[int, ...]):
    codes, scale = int4.quantize(mx.array(weights(shape)))
    again_codes, again_scale = int4.quantize(int4.dequantize(codes, scale))
    assert mx.array_equal(codes, again_codes)
    assert mx.array_equal(scale, again_scale)


def test_rounding_is_within_half_a_step():
    weight = weights((64, 64))
    codes, scale = int4.quantize(mx.array(weight))
    error = np.abs(np.array(int4.dequantize(codes, scale)) - weight).reshape(-1, 32)
    # float16 rounds the scale down by up to 2^-11, which costs the largest code 8 x 2^-11 steps.
    step = np.array(scale).astype(np.float32).reshape(-1, 1)
    normal = step[:, 0] > 1e-4
    assert (error[normal] <= step[normal] * (0.5 + 8 * 2.0**-11)).all()


def test_the_papers_scales_clamp_the_largest_positive_values():
    """0.75 is 7.5 steps: clamped to 7; -0.75 rounds to -8, half to even."""
    weight = mx.array([[0.75, -0.75, *[0.1] * 30]])
    codes, scale = int4.quantize(weight, "paper")
    assert scale.item() == np.float16(0.1)
    assert codes[0, :3].tolist() == [7, -8, 1]


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_fake_quantisation_is_the_round_trip_and_its_gradient_the_identity(rule: ScaleRule):
    weight = mx.array(weights((8, 64)))
    cotangent = mx.random.normal(weight.shape)
    (value,), (gradient,) = mx.vjp(lambda w: int4.fake_quantize(w, rule), [weight], [cotangent])
    assert mx.array_equal(value, int4.dequantize(*int4.quantize(weight, rule)))
    assert mx.array_equal(gradient, cotangent)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 8192.0])
def test_scales_out_of_reach_are_refused(bad: float):
    scale = mx.ones((4,), mx.float16)
    int4.check_scales("x", scale)
    scale[2] = bad
    with pytest.raises(UserError, match="1 of 4 scales"):
        int4.check_scales("x", scale)


def test_a_ragged_axis_is_refused():
    with pytest.raises(ValueError, match="33"):
        int4.quantize(mx.zeros((2, 33)))


ARGS = small_args(num_hidden_layers=2)


def random_model(args: ModelArgs) -> Model:
    """Random weights; norms and selection biases that bfloat16 must round."""
    mx.random.seed(3)
    model = Model(args)
    for layer in model.layers:
        layer.feed_forward.expert_bias = 0.1 * mx.random.normal((args.num_local_experts,))
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.weight = mx.random.uniform(0.5, 1.5, module.weight.shape)
    mx.eval(model.parameters())
    return model


def relative_error(measured: mx.array, reference: mx.array) -> float:
    return (mx.abs(measured - reference).max() / mx.abs(reference).max()).item()


@pytest.mark.parametrize("args", [ARGS, PRESETS["tiny"]], ids=["small", "tiny"])
@pytest.mark.parametrize("length", [1, 7, 40])  # one token, and both sides of the sorting threshold
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_qat_forward_is_the_int4_model(args: ModelArgs, length: int, rule: ScaleRule):
    model = random_model(args)
    tokens = mx.random.randint(0, args.vocab_size, (2, length))
    int4_logits = quantize_model(model, rule=rule)(tokens)
    plain = model(tokens)
    model.update(fake_quantize_parameters(model.parameters(), rule))
    # Two orders of summation of one and the same float32 computation.
    assert relative_error(model(tokens), int4_logits) < 1e-5
    assert relative_error(plain, int4_logits) > 1e-3  # quantisation is not a no-op


@pytest.mark.parametrize("length", [1, 40])
def test_int4_kernels_compute_what_dequantised_weights_do(length: int):
    model = quantize_model(random_model(ARGS))
    plain = float_model(model)
    assert not plain.args.quantized and float_model(plain) is plain
    tokens = mx.random.randint(0, ARGS.vocab_size, (1, length))
    assert relative_error(model(tokens), plain(tokens)) < 1e-5


def test_quantised_tensors_have_the_published_names_shapes_and_types():
    args = PRESETS["tiny"]
    d, w, experts = args.hidden_size, args.intermediate_size, args.num_local_experts
    tensors = quantize_parameters(random_model(args).parameters())
    layer = "model.layers.3."
    expected = {
        "model.embed_tokens.qweight": ((args.vocab_size, d // 2), mx.uint8),
        "model.embed_tokens.weight_scale": ((args.vocab_size, d // 32), mx.float16),
        "model.norm.weight": ((d,), mx.bfloat16),
        layer + "self_attn.k_proj.qweight": ((args.key_value_dim, d // 2), mx.uint8),
        layer + "self_attn.k_proj.weight_scale": ((args.key_value_dim, d // 32), mx.float16),
        layer + "feed_forward.experts.gate_up_qweight": ((experts, d, w), mx.uint8),
        layer + "feed_forward.experts.gate_up_scale": ((experts, d, 2 * w // 32), mx.float16),
        layer + "feed_forward.experts.down_qweight": ((experts, w, d // 2), mx.uint8),
        layer + "feed_forward.experts.down_scale": ((experts, w, d // 32), mx.float16),
        layer + "feed_forward.router.weight": ((experts, d), mx.float32),
        layer + "feed_forward.expert_bias": ((experts,), mx.bfloat16),
    }
    for name, (shape, dtype) in expected.items():
        assert (tensors[name].shape, tensors[name].dtype) == (shape, dtype), name
