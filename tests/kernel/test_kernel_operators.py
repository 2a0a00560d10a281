"""Each operator against float64, in every precision and code path, at odd sizes and counts."""

from __future__ import annotations

import kernel_reference as reference
import numpy as np
import pytest
from kernel_library import AttentionShape, Library, MoeShape
from kernel_reference import MoeTensors, Packed, activations, random_int4, relative_error

from mobilemoe_mlx.cpu_kernel.library import tensor
from mobilemoe_mlx.cpu_kernel.structures import Int4, MoeWeights

# Relative to float64: what coreml/kernel/README.md promises.
LIMITS = {"exact": 1e-5, "int16": 1e-3, "int8": 1e-2}
COUNTS = (1, 2, 3, 31, 33, 512)


def int4(packed: Packed) -> Int4:
    return Int4(tensor(packed.codes), tensor(packed.scales))


def moe_weights(m: MoeTensors) -> MoeWeights:
    return MoeWeights(
        tensor(m.router),
        tensor(m.expert_bias),
        int4(m.gate_up),
        int4(m.down),
        int4(m.shared_gate),
        int4(m.shared_up),
        int4(m.shared_down),
    )


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (19, 96), (40, 160), (64, 768)])
def test_linear(library: Library, any_path: str, precision: str, rows: int, columns: int) -> None:
    rng = np.random.default_rng([rows, columns])
    runtime = library.runtime(precision, cpu_path=any_path)
    weight = random_int4(rng, rows, columns)
    for count in COUNTS:
        x = activations(rng, count, columns)
        y = runtime.linear(weight.codes, weight.scales, x)
        assert y.shape == (count, rows)
        wanted = x.astype(np.float64) @ weight.values.T
        # Against the size that a sum of such products has: the one sum of the smallest case may
        # nearly cancel.
        size = np.sqrt(np.square(x.astype(np.float64)) @ np.square(weight.values).T)
        assert np.linalg.norm(y - wanted) < LIMITS[precision] * np.linalg.norm(size)


@pytest.mark.parametrize("precision", ["int16", "int8"])
def test_linear_of_whole_numbers_is_exact(library: Library, any_path: str, precision: str) -> None:
    """Activations that the integers hold, and scales that are powers of 2: nothing is rounded."""
    # NEON's 16 bits are two signed bytes: 127 x 256 + 127.
    limit = 127 if precision == "int8" else 32639 if any_path.startswith("neon") else 32767
    rng = np.random.default_rng(6)
    weight = random_int4(rng, 21, 96)
    weight.scales[:] = 2.0 ** rng.integers(-2, 3, weight.scales.shape)
    for count in (1, 5):
        x = rng.integers(-limit, limit + 1, (count, 96)).astype(np.float32)
        x[:, ::32] = limit
        y = library.runtime(precision, cpu_path=any_path).linear(weight.codes, weight.scales, x)
        np.testing.assert_array_equal(y, x.astype(np.float64) @ weight.values.T)


@pytest.mark.parametrize("precision", LIMITS)
def test_linear_takes_extreme_values(library: Library, any_path: str, precision: str) -> None:
    """Every product at its largest, zero rows, tiny and huge activations, subnormal scales."""
    runtime = library.runtime(precision, cpu_path=any_path)
    codes = np.full((32, 128), 0x88, np.uint8)  # all -8
    scales = np.full((32, 8), 8188, np.float16)
    scales[1] = 6e-8  # the smallest subnormal float16
    scales[2] = 0
    weight = Packed(codes, scales)
    x = np.full((5, 256), -1.0, np.float32)
    x[1] = 1e-42  # subnormal
    x[2] = 1e30
    x[3] = 0
    x[4, :128] = 1
    for rows in (x, x[:1], x[1:2], x[2:3], x[3:4]):
        y = runtime.linear(weight.codes, weight.scales, rows)
        wanted = rows.astype(np.float64) @ weight.values.T
        size = np.abs(rows.astype(np.float64)) @ np.abs(weight.values).T  # one row cancels
        assert (np.abs(y - wanted) <= LIMITS[precision] * size + 1e-30).all()


# Infinite, no number at all, or so large that the product with a scale is infinite.
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("precision", LIMITS)
def test_what_is_not_finite_stays_so(
    library: Library, any_path: str, precision: str, value: float
) -> None:
    """Of a token with such an activation no output is a plausible number; of the others all are."""
    rng = np.random.default_rng(8)
    m = reference.random_moe(rng, 96, 64, 32, 5)
    for packed in (m.gate_up, m.down, m.shared_gate, m.shared_up, m.shared_down):
        packed.scales[:] = 1000
    runtime = library.runtime(precision, cpu_path=any_path)
    for place in (*range(32), 50, 95):
        for count in (1, 6):
            x = activations(rng, count, 96)
            x[0, place] = value
            gate = runtime.linear(m.shared_gate.codes | 0x11, m.shared_gate.scales, x)  # no 0
            assert not np.isfinite(gate[0]).any()
            assert np.isfinite(gate[1:]).all()
            y = runtime.moe_ffn(MoeShape(96, 64, 32, 5, 2, 1, 2.5), moe_weights(m), x)
            assert not np.isfinite(y[0]).any()
            assert np.isfinite(y[1:]).all()


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("count", COUNTS)
def test_moe_ffn(library: Library, any_path: str, precision: str, count: int) -> None:
    rng = np.random.default_rng(count)
    d, w, shared, experts, slots = 96, 160, 224, 11, 3
    m = reference.random_moe(rng, d, w, shared, experts)
    x = activations(rng, count, d)
    shape = MoeShape(d, w, shared, experts, slots, 1, 2.5)
    y = library.runtime(precision, cpu_path=any_path).moe_ffn(shape, moe_weights(m), x)
    wanted, _ = reference.moe_ffn(m, x, slots, True, 2.5)
    # Two products follow each other, so that their errors add as squares.
    assert relative_error(y, wanted) < LIMITS[precision] * 2


@pytest.mark.parametrize(
    ("experts", "shared", "normalise"), [(5, 0, False), (0, 64, True), (1, 32, True)]
)
def test_moe_ffn_in_part(
    library: Library, any_path: str, experts: int, shared: int, normalise: bool
) -> None:
    """Without shared expert; dense, without routed ones; unnormed weights."""
    rng = np.random.default_rng(7)
    d, w, slots = 64, 32, 1
    m = reference.random_moe(rng, d, w, shared, experts)
    runtime = library.runtime(cpu_path=any_path)
    for count in (1, 9):
        x = activations(rng, count, d)
        shape = MoeShape(d, w, shared, experts, slots, int(normalise), 1.5)
        y = runtime.moe_ffn(shape, moe_weights(m), x)
        if experts:
            wanted, _ = reference.moe_ffn(m, x, slots, normalise, 1.5)
        else:
            parts = (m.shared_gate, m.shared_up, m.shared_down)
            wanted = reference.swiglu(x.astype(np.float64), *(p.values.T for p in parts))
        assert relative_error(y, wanted) < LIMITS["exact"]


def test_ties_go_to_the_lower_index(library: Library, any_path: str) -> None:
    rng = np.random.default_rng(3)
    m = reference.random_moe(rng, 64, 32, 32, 8)
    m.router[:] = m.router[0]
    m.expert_bias[:] = [0.1, 0.2, 0.2, 0.1, 0.2, 0.1, 0.1, 0.2]
    for count in (1, 40):
        x = activations(rng, count, 64)
        wanted, selected = reference.moe_ffn(m, x, 3, True, 2.5)
        assert (selected == [1, 2, 4]).all()
        runtime = library.runtime(cpu_path=any_path)
        y = runtime.moe_ffn(MoeShape(64, 32, 32, 8, 3, 1, 2.5), moe_weights(m), x)
        assert relative_error(y, wanted) < LIMITS["exact"]


def test_bfloat16_bias_is_told_apart_by_its_bytes(library: Library) -> None:
    rng = np.random.default_rng(4)
    m = reference.random_moe(rng, 64, 32, 32, 6)
    short = (m.expert_bias.view(np.uint32) >> 16).astype(np.uint16)
    m.expert_bias = (short.astype(np.uint32) << 16).view(np.float32)
    shape, x = MoeShape(64, 32, 32, 6, 2, 1, 2.5), activations(rng, 3, 64)
    weights = moe_weights(m)
    wide = library.runtime().moe_ffn(shape, weights, x)
    weights.expert_bias = tensor(short)
    np.testing.assert_array_equal(library.runtime().moe_ffn(shape, weights, x), wide)


def test_embedding_is_exact(library: Library) -> None:
    rng = np.random.default_rng(1)
    table = random_int4(rng, 40, 96)
    tokens = np.array([0, 39, 7, 7], np.int32)
    y = library.runtime("int8").embedding(table.codes, table.scales, tokens)
    np.testing.assert_array_equal(y, table.values[tokens].astype(np.float32))


@pytest.mark.parametrize("width", [1, 7, 96])
def test_rms_norm(library: Library, any_path: str, width: int) -> None:
    rng = np.random.default_rng(width)
    x = activations(rng, 3, width)
    weight = rng.standard_normal(width).astype(np.float32)
    y = library.runtime(cpu_path=any_path).rms_norm(x, weight, 1e-5)
    assert relative_error(y, reference.rms_norm(x, 1e-5) * weight) < 1e-6


@pytest.mark.parametrize("precision", LIMITS)
def test_head(library: Library, any_path: str, precision: str) -> None:
    rng = np.random.default_rng(2)
    table, norm = random_int4(rng, 333, 96), rng.standard_normal(96).astype(np.float32)
    runtime = library.runtime(precision, cpu_path=any_path)
    for count in (1, 5):
        x = activations(rng, count, 96)
        y = runtime.head(x, norm, 0.25, table.codes, table.scales)
        wanted = (reference.rms_norm(x, 0.25) * norm) @ table.values.T
        assert relative_error(y, wanted) < LIMITS[precision]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "norm"),
    [(6, 2, 16, True), (4, 4, 64, False), (7, 1, 18, True)],
)
def test_attention(
    library: Library, any_path: str, heads: int, kv_heads: int, head_dim: int, norm: bool
) -> None:
    """Any cut of a sequence, across the kernel's blocks of 16 and chunks of 256 positions."""
    if any_path in library.emulated and any_path != "neon":
        pytest.skip("attention on arm64 is that of the code path neon, and an emulator is slow")
    rng = np.random.default_rng(heads)
    total, context = 600, 610
    runtime = library.runtime(threads=3, cpu_path=any_path)
    shape = AttentionShape(heads, kv_heads, head_dim, context, norm, 1e-5, head_dim**-0.5)
    periods = (500.0 ** (np.arange(head_dim // 2) * 2 / head_dim)).astype(np.float32)
    q, k, v = (
        rng.standard_normal((total, n, head_dim)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    at = np.arange(total)
    wanted_q, wanted_k = reference.rotate(q, at, periods), reference.rotate(k, at, periods)
    if norm:
        wanted_q, wanted_k = (reference.rms_norm(a, 1e-5) for a in (wanted_q, wanted_k))
    wanted_k, wanted_v = wanted_k.transpose(1, 0, 2), v.transpose(1, 0, 2)
    wanted = reference.attention(wanted_q, wanted_k, wanted_v, 0)
    # Rows that must not be read hold what is not a number.
    caches = [np.full((kv_heads, context, head_dim), np.nan, np.float32) for _ in range(2)]
    for begin, end in [(0, 1), (1, 15), (15, 48), (48, 49), (49, 400), (400, 599), (599, 600)]:
        y, keys, values = runtime.attention(
            shape, q[begin:end], k[begin:end], v[begin:end], begin, *caches, periods
        )
        for cache, rows in zip(caches, (keys, values), strict=True):
            cache[:, begin:end] = rows
        assert relative_error(y, wanted[begin:end]) < LIMITS["exact"]
    assert np.abs(caches[0][:, :total] - wanted_k).max() < 2e-6
    np.testing.assert_array_equal(caches[1][:, :total], wanted_v)


@pytest.mark.parametrize("precision", LIMITS)
def test_threads_do_not_change_a_bit(library: Library, any_path: str, precision: str) -> None:
    rng = np.random.default_rng(9)
    m = reference.random_moe(rng, 96, 128, 160, 9)
    shape, weights = MoeShape(96, 128, 160, 9, 2, 1, 2.5), moe_weights(m)
    for count in (1, 2, 45):
        x = activations(rng, count, 96)
        first = library.runtime(precision, 1, any_path).moe_ffn(shape, weights, x)
        for threads in (2, 5, 16):
            y = library.runtime(precision, threads, any_path).moe_ffn(shape, weights, x)
            np.testing.assert_array_equal(y, first)
