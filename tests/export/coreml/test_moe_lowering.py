"""`moe_ffn` and its lowerings, saved and evaluated, against the MLX block and plain numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import coremltools as ct
import mlx.core as mx
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

from mobilemoe_mlx import int4
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.coreml import expert_blocks, moe_lowering
from mobilemoe_mlx.export.coreml.int4_matmul import packed_matmul
from mobilemoe_mlx.export.coreml.save_program import save_program
from mobilemoe_mlx.mil.evaluator import Evaluator
from mobilemoe_mlx.mil.program import read_package

D, W, S, E, K = 64, 32, 96, 7, 3


@dataclasses.dataclass(frozen=True)
class Moe:
    """Random inputs of one moe_ffn."""

    router: np.ndarray
    bias: np.ndarray
    gate_up: np.ndarray  # uint8 [E, D, W]
    gate_up_scale: np.ndarray
    down: np.ndarray  # uint8 [E, W, D / 2]
    down_scale: np.ndarray
    shared_gate_up: np.ndarray  # fp16
    shared_down: np.ndarray


def make_moe(seed: int = 0) -> Moe:
    rng = np.random.default_rng(seed)

    def scale(*shape: int) -> np.ndarray:
        return rng.uniform(0.01, 0.03, shape).astype(np.float16)

    return Moe(
        router=rng.normal(0, 0.3, (E, D)).astype(np.float32),
        bias=rng.normal(0, 0.1, E).astype(np.float32),
        gate_up=rng.integers(0, 256, (E, D, W), np.uint8),
        gate_up_scale=scale(E, D, 2 * W // 32),
        down=rng.integers(0, 256, (E, W, D // 2), np.uint8),
        down_scale=scale(E, W, D // 32),
        shared_gate_up=rng.normal(0, 0.1, (2 * S, D)).astype(np.float16),
        shared_down=rng.normal(0, 0.1, (D, S)).astype(np.float16),
    )


def build(moe: Moe, tokens: int, norm: bool = True) -> Program:
    program = Program()
    inputs = {"x": mb.placeholder(shape=(tokens, D), dtype=types.fp32)}
    with Function(inputs, opset_version=ct.target.iOS18) as function:
        out = mb.moe_ffn(
            x=function.inputs["x"],
            router=moe.router,
            expert_bias=moe.bias,
            gate_up_codes=moe.gate_up.view(np.int8),
            gate_up_scale=moe.gate_up_scale,
            down_codes=moe.down.view(np.int8),
            down_scale=moe.down_scale,
            shared_gate_up=moe.shared_gate_up,
            shared_down=moe.shared_down,
            top_k=K,
            norm_topk_prob=norm,
            routed_scaling_factor=np.float32(2.5),
            name="layers_0_moe",
        )
        function.set_outputs([out])
    program.add_function("main", function)
    program.export_as_multifunction = True
    return program


def save(program: Program, folder: Path) -> Evaluator:
    save_program(program, folder / "moe.mlpackage", "iOS18")
    return Evaluator(read_package(folder / "moe.mlpackage"), "float32")


def dequantize(packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    codes = np.array(int4.unpack(mx.array(packed)), np.float32)
    return codes * np.repeat(scale.astype(np.float32), 32, axis=-1)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def reference(moe: Moe, x: np.ndarray, norm: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(output [T, D], experts [T, K]) by a loop over tokens, in float64."""
    gate_up = dequantize(moe.gate_up, moe.gate_up_scale).astype(np.float64)
    down = dequantize(moe.down, moe.down_scale).astype(np.float64)
    out, chosen = np.zeros(x.shape), []
    for t, row in enumerate(x.astype(np.float64)):
        # The selection is by float32 numbers, as the router computes them.
        s = 1 / (1 + np.exp(-(moe.router @ x[t]), dtype=np.float32))
        biased = s + moe.bias
        order = sorted(range(E), key=lambda e: (-biased[e], e))[:K]
        weights = s[order].astype(np.float64)
        if norm:
            weights = weights / weights.sum()
        for e, weight in zip(order, weights, strict=True):
            h = row @ gate_up[e]
            out[t] += 2.5 * weight * ((silu(h[:W]) * h[W:]) @ down[e])
        h = moe.shared_gate_up.astype(np.float64) @ row
        out[t] += moe.shared_down.astype(np.float64) @ (silu(h[:S]) * h[S:])
        chosen.append(order)
    return out, np.array(chosen)


def run(evaluator: Evaluator, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    taps: dict[str, np.ndarray] = {}
    y = evaluator.run("main", {"x": x}, {}, lambda n, v: taps.update({n: v.copy()}))["layers_0_moe"]
    return y, taps["layers_0_selection"].argmax(-1)


def close(measured: np.ndarray, expected: np.ndarray) -> bool:
    # Sums of about a hundred float32 products.
    return np.abs(measured - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 5, 37])
def test_lowered_op_is_the_moe(tmp_path: Path, tokens: int, norm: bool) -> None:
    moe = make_moe()
    x = np.random.default_rng(1).normal(size=(tokens, D)).astype(np.float32)
    y, experts = run(save(build(moe, tokens, norm), tmp_path), x)
    expected, chosen = reference(moe, x, norm)
    assert np.array_equal(experts, chosen)
    assert close(y, expected)


def test_lowered_op_is_the_mlx_block(tmp_path: Path) -> None:
    """The same bytes in this package's own module, which nobody wrote with MIL in mind."""
    from mobilemoe_mlx.model import MixtureOfExperts

    moe = make_moe(3)
    args = ModelArgs(
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=W,
        intermediate_size_mlp=S,
        num_local_experts=E,
        num_experts_per_tok=K,
        vocab_size=64,
        bos_token_id=None,
        eos_token_id=(),
    )
    block = MixtureOfExperts(args)
    block.router.weight = mx.array(moe.router)
    block.expert_bias = mx.array(moe.bias)
    block.experts.gate_up_proj.weight = mx.array(dequantize(moe.gate_up, moe.gate_up_scale))
    block.experts.down_proj.weight = mx.array(dequantize(moe.down, moe.down_scale))
    shared = moe.shared_gate_up.astype(np.float32)
    block.shared_expert.gate_proj.weight = mx.array(shared[:S])
    block.shared_expert.up_proj.weight = mx.array(shared[S:])
    block.shared_expert.down_proj.weight = mx.array(moe.shared_down.astype(np.float32))
    x = np.random.default_rng(2).normal(size=(20, D)).astype(np.float32)
    expected, routing = block(mx.array(x)[None])
    y, experts = run(save(build(moe, 20), tmp_path), x)
    assert np.array_equal(experts, np.array(routing.experts))
    assert close(y, np.array(expected)[0])


@pytest.mark.parametrize("tokens", [1, 9])
def test_ties_go_to_the_lower_index(tmp_path: Path, tokens: int) -> None:
    moe = dataclasses.replace(
        make_moe(), router=np.zeros((E, D), np.float32), bias=np.zeros(E, np.float32)
    )
    moe.bias[5] = 0.25
    x = np.ones((tokens, D), np.float32)
    _, experts = run(save(build(moe, tokens), tmp_path), x)
    assert experts.tolist() == [[5, 0, 1]] * tokens


@pytest.mark.parametrize("bias", [[9, 8, 7, 0, 0, 0, 0], [0, 0, 0, 0, 7, 8, 9]])
def test_dropless_when_all_tokens_choose_the_same_experts(tmp_path: Path, bias: list[int]) -> None:
    moe = dataclasses.replace(make_moe(), bias=np.array(bias, np.float32))
    x = np.random.default_rng(4).normal(size=(50, D)).astype(np.float32)
    y, experts = run(save(build(moe, 50), tmp_path), x)
    assert {tuple(sorted(row)) for row in experts} == {tuple(sorted(np.argsort(bias)[-K:]))}
    assert close(y, reference(moe, x)[0])


def test_experts_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moe = make_moe()
    x = np.random.default_rng(1).normal(size=(37, D)).astype(np.float32)
    monkeypatch.setattr(moe_lowering, "UNPACKED_BYTES", 3 * D * 2 * W * 2)
    program = build(moe, 37)
    evaluator = save(program, tmp_path)
    turns = sum(op.type == "stack" for op in evaluator.package.functions["main"].operations)
    blocks = expert_blocks.most_blocks(37, K, E, expert_blocks.block_rows(37))
    assert blocks > 6
    assert turns == 2 * -(-blocks // 3)  # gate_up and down, at most three blocks at a time
    assert close(run(evaluator, x)[0], reference(moe, x)[0])


def test_another_lowering_is_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def all_experts(op, routing, x16):
        """Every expert for every token, and weights of 0 for those that are not selected."""
        called.append(op.name)
        everyone = np.arange(E, dtype=np.uint16)
        indices = mb.gather(x=everyone, indices=mb.cast(x=everyone, dtype="int32"), axis=0)
        x = mb.tile(x=mb.expand_dims(x=x16, axes=[0]), reps=[E, 1, 1])
        y = mb.cast(x=moe_lowering._experts(op, x, indices), dtype="fp32")  # [E, T, D]
        shares = mb.mul(x=routing.one_hot, y=mb.expand_dims(x=routing.weights, axes=[2]))
        shares = mb.reduce_sum(x=shares, axes=[1], keep_dims=False)  # [T, E]
        shares = mb.expand_dims(x=mb.transpose(x=shares, perm=[1, 0]), axes=[2])
        return mb.reduce_sum(x=mb.mul(x=y, y=shares), axes=[0], keep_dims=False)

    few = moe_lowering.Lowering(all_experts, lambda op: 1 < op.x.shape[0] < 4)
    monkeypatch.setattr(moe_lowering, "LOWERINGS", (few, *moe_lowering.LOWERINGS))
    moe = make_moe()
    x = np.random.default_rng(1).normal(size=(3, D)).astype(np.float32)
    assert close(run(save(build(moe, 3), tmp_path), x)[0], reference(moe, x)[0])
    assert called == ["layers_0_moe"]


def blocks_of(counts: list[int], rows: int) -> int:
    return sum(-(-count // rows) for count in counts)


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "rows"),
    [(7, 2, 5, 4), (6, 3, 6, 2), (3, 2, 9, 4), (5, 1, 3, 2), (4, 2, 3, 4)],
)
def test_most_blocks_is_enough_and_reached(
    tokens: int, top_k: int, experts: int, rows: int
) -> None:
    """Against every way in which tokens can be shared out among the experts."""

    def shared_out(pairs: int, experts: int) -> Iterator[list[int]]:
        if experts == 1:
            if pairs <= tokens:  # an expert has a token once
                yield [pairs]
            return
        for count in range(min(pairs, tokens) + 1):
            for rest in shared_out(pairs - count, experts - 1):
                yield [count, *rest]

    seen = max(blocks_of(counts, rows) for counts in shared_out(tokens * top_k, experts))
    assert seen == expert_blocks.most_blocks(tokens, top_k, experts, rows)


@pytest.mark.parametrize("arithmetic", ["declared", "float32"])
def test_every_byte_unpacks_exactly(tmp_path: Path, arithmetic: str) -> None:
    """All 256 bytes, times the unit matrix, in float16 arithmetic."""
    packed = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    program = Program()
    inputs = {"x": mb.placeholder(shape=(1, 16, 16), dtype=types.fp16)}
    with Function(inputs, opset_version=ct.target.iOS18) as function:
        index = np.array([0], np.uint16)
        codes = mb.gather(x=mb.const(val=packed.view(np.int8)), indices=index, axis=0)
        scale = mb.const(val=np.ones((1, 16, 1), np.float16))
        y = packed_matmul(function.inputs["x"], codes, scale)
        y.name = "y"
        function.set_outputs([y])
    program.add_function("main", function)
    program.export_as_multifunction = True
    save(program, tmp_path)
    evaluator = Evaluator(read_package(tmp_path / "moe.mlpackage"), arithmetic)
    half = np.float16 if arithmetic == "declared" else np.float32
    y = evaluator.run("main", {"x": np.eye(16, dtype=half)[None]}, {})["y"]
    assert np.array_equal(y, np.array(int4.unpack(mx.array(packed))).astype(half))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"router": np.zeros((E, D + 1), np.float32)}, "router has the shape"),
        ({"bias": np.zeros(E + 1, np.float32)}, "expert_bias has the shape"),
        ({"down": np.zeros((E, W + 1, D // 2), np.uint8)}, "down_codes has the shape"),
        ({"gate_up_scale": np.zeros((E, D, 1), np.float16)}, "gate_up_scale has the shape"),
        ({"shared_down": np.zeros((D + 1, S), np.float16)}, "shared_down has the shape"),
    ],
)
def test_shapes_that_do_not_fit(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(dataclasses.replace(make_moe(), **change), 2)


def test_the_pass_is_registered_by_name() -> None:
    assert moe_lowering.PASS in PASS_REGISTRY
