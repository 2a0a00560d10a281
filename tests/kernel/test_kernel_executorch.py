"""The routed experts against ExecuTorch's own operator, where the wheel `executorch` is installed.

`llama::quantized_moe_ffn` is what Meta runs MobileMoE with on phones: router, choice, experts and
weighted sum. On x86-64 it computes in float32, from weights that it unpacks. Its groups of 32 run
along the inputs and ours along the outputs; what both can hold are scales that stand for squares
of 32 x 32. The wheel of torchao packs weights on arm64 alone, so they are packed here.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import Any

import kernel_reference as reference
import numpy as np
import pytest
from kernel_library import Library, MoeShape
from kernel_reference import GROUP, Packed, activations, relative_error

from mobilemoe_mlx.cpu_kernel.library import tensor
from mobilemoe_mlx.cpu_kernel.structures import Int4, MoeWeights

# Where the wheel has the operator; its Python modules import much that the operator does not need.
LIBRARY = Path("extension", "llm", "custom_ops", "libcustom_ops_aot_lib.so")
# torchao's "universal" form: 8 rows together, 16 columns at a time, in two halves.
ROWS, COLUMNS, HALVES = 8, 16, 2


@pytest.fixture(scope="module")
def operator() -> Any:
    """`llama::quantized_moe_ffn`."""
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        pytest.skip("ExecuTorch is not installed (pip install executorch)")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("elsewhere than on x86-64 this operator rounds activations to 8 bits")
    torch = pytest.importorskip("torch", reason="ExecuTorch's operators need PyTorch")
    library = Path(next(iter(found.submodule_search_locations))) / LIBRARY
    try:
        torch.ops.load_library(library)
    except OSError as error:
        pytest.skip(f"this PyTorch cannot load ExecuTorch's operators: {error}")
    return torch.ops.llama.quantized_moe_ffn


def square_int4(rng: np.random.Generator, experts: int, rows: int, columns: int) -> Packed:
    """INT4 [experts, rows, columns] with one scale for each square of 32 x 32."""
    packed = reference.random_int4(rng, experts, rows, columns)
    return Packed(packed.codes, np.repeat(packed.scales[:, ::GROUP], GROUP, axis=1))


def torchao_blob(weight: Packed, expert: int) -> np.ndarray:
    """One expert's matrix [in, out] as torchao's packed bytes of its transpose [out, in].

    A header of sixteen words of 32 bits (6712, the form, bits, has zeros, has bias, the three sizes
    above), then for 8 rows and each group of 32 columns: the codes, the rows' scales, the sums of
    their codes.
    """
    nibbles = np.stack([weight.codes[expert] & 15, weight.codes[expert] >> 4], axis=-1)
    codes = ((nibbles.reshape(len(nibbles), -1).astype(np.int32) ^ 8) - 8).T
    scales = np.repeat(weight.scales[expert][::GROUP], GROUP, axis=1).T.astype(np.float32)
    out, width = codes.shape
    assert out % ROWS == 0 and width % GROUP == 0
    parts = [np.array([6712, 1, 4, 0, 0, ROWS, COLUMNS, HALVES, *[0] * 8], np.int32)]
    for row in range(0, out, ROWS):
        for group in range(width // GROUP):
            block = codes[row : row + ROWS, group * GROUP : (group + 1) * GROUP]
            for column in range(0, GROUP, COLUMNS):
                # All rows' first 8 columns, then all rows' last 8.
                halves = block[:, column : column + COLUMNS].reshape(ROWS, HALVES, -1)
                values = (halves.swapaxes(0, 1).reshape(-1, 2, 16) + 8).astype(np.uint8)
                parts.append(values[:, 0] | values[:, 1] << 4)
            parts += [scales[row : row + ROWS, group], block.sum(axis=1, dtype=np.int32)]
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


@pytest.mark.parametrize("precision", ["exact", "int16", "int8"])
@pytest.mark.parametrize("count", [1, 2, 33, 130])
def test_routed_experts(library: Library, operator: Any, precision: str, count: int) -> None:
    import torch

    rng = np.random.default_rng(count)
    d, w, experts, slots, scaling = 96, 160, 12, 4, 2.5
    m = reference.random_moe(rng, d, w, 0, experts)
    m.gate_up, m.down = square_int4(rng, experts, d, 2 * w), square_int4(rng, experts, w, d)
    m.expert_bias[5], m.router[5] = m.expert_bias[3], m.router[3]  # a tie: the lower index wins
    x = activations(rng, count, d)
    blobs = [
        torch.from_numpy(np.stack([torchao_blob(weight, i) for i in range(experts)]))
        for weight in (m.gate_up, m.down)
    ]
    router, bias = torch.from_numpy(m.router), torch.from_numpy(m.expert_bias)
    theirs = operator(
        torch.from_numpy(x),
        router,
        bias,
        *blobs,
        slots,
        experts,
        w,
        d,
        GROUP,
        4,
        "sigmoid",
        scaling,
    ).numpy()
    # That the operator has read these weights: our own float64 statement of the layer.
    assert relative_error(theirs, reference.moe_ffn(m, x, slots, True, scaling)[0]) < 1e-5

    def int4(packed: Packed) -> Int4:
        return Int4(tensor(packed.codes), tensor(packed.scales))

    weights = MoeWeights(
        tensor(m.router),
        tensor(m.expert_bias),
        int4(m.gate_up),
        int4(m.down),
        int4(m.shared_gate),
        int4(m.shared_up),
        int4(m.shared_down),
    )
    shape = MoeShape(d, w, 0, experts, slots, 1, scaling)
    ours = library.runtime(precision).moe_ffn(shape, weights, x)
    # Limits: coreml/kernel/README.md.
    assert relative_error(ours, theirs) < {"exact": 1e-5, "int16": 1e-3, "int8": 2e-2}[precision]
