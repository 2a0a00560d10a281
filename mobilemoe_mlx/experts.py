"""The routed experts: their linear layers in float and INT4, and the dropless dispatch to them.

Weights stay in the published layout [experts, in, out], quantised in groups along *out*.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mobilemoe_mlx import int4, linux_cpu
from mobilemoe_mlx.config import GROUP_SIZE
from mobilemoe_mlx.gather_mm import gather_mm
from mobilemoe_mlx.linux_cpu.int4_product import int4_product, is_faster
from mobilemoe_mlx.linux_cpu.routed_experts import routed_experts
from mobilemoe_mlx.linux_cpu.swiglu import swiglu
from mobilemoe_mlx.lora.experts import LoRAExpertLinear
from mobilemoe_mlx.lora.low_rank import float_matrix

# Below this many (token, slot) pairs sorting costs more than it saves (mlx-lm's threshold).
_SORT_FROM = 64

# Rows of one expert that are multiplied together. Metal's gather_mm groups the sorted rows of an
# expert itself; the CPU's makes one BLAS call a row, so rows are put into blocks for it.
_CPU_BLOCK = 32


class ExpertLinear(nn.Module):
    """One linear layer of every expert: weight [experts, in, out], no bias."""

    def __init__(self, num_experts: int, input_dims: int, output_dims: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(input_dims)
        shape = (num_experts, input_dims, output_dims)
        self.weight = mx.random.uniform(-bound, bound, shape)

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x [..., rows, in] times the expert of each `indices` [...] -> [..., rows, out]."""
        return gather_mm(x, self.weight, indices, sorted_indices)

    def to_lora(self, r: int = 8, scale: float = 20.0, dropout: float = 0.0) -> LoRAExpertLinear:
        """The hook of mlx-lm's `linear_to_lora_layers`, with its default values."""
        return LoRAExpertLinear(self, r=r, scale=scale, dropout=dropout)

    def with_weight(self, weight: mx.array, dequantize: bool = False) -> ExpertLinear:
        """A layer of float32 `weight` [experts, in, out], stored as this one's."""
        layer = ExpertLinear(*weight.shape)
        layer.weight = weight.astype(self.weight.dtype)
        return layer

    def to_quantized(
        self, group_size: int = GROUP_SIZE, bits: int = 4, mode: str = "affine"
    ) -> QuantizedExpertLinear:
        """The hook of `mlx.nn.quantize`: MLX's own rounding, groups along *out*."""
        return QuantizedExpertLinear(self.weight, group_size, bits, mode)


class QuantizedExpertLinear(nn.Module):
    """`ExpertLinear` with packed weights, in the form of MLX's affine quantisation.

    weight uint32 [experts, in, out x bits / 32]; scales and biases [experts, in, out / group_size].
    """

    def __init__(
        self, weight: mx.array, group_size: int = GROUP_SIZE, bits: int = 4, mode: str = "affine"
    ) -> None:
        super().__init__()
        if mode != "affine":
            raise ValueError(f"experts are quantised in mode 'affine', not {mode!r}")
        self.group_size, self.bits = group_size, bits
        self.weight, self.scales, self.biases = mx.quantize(weight, group_size, bits)
        self.freeze()

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x [..., rows, in] times the expert of each `indices` [...] -> [..., rows, out]."""
        if sorted_indices and is_faster(x, self.weight.shape[0]):
            return int4_product(
                x,
                lambda: float_matrix(self),
                lambda x, weight: gather_mm(x, weight, indices, sorted_indices),
            )
        form = {"group_size": self.group_size, "bits": self.bits, "transpose": False}
        weight, scales, biases = self.weight, self.scales, self.biases
        if x.dtype != scales.dtype and indices.size < weight.shape[0]:
            # The kernel wants scales of x's type: widen those of the selected experts only.
            scales, biases = (s[indices].astype(x.dtype) for s in (scales, biases))
            return mx.quantized_matmul(x, weight[indices], scales, biases, **form)
        return mx.gather_qmm(
            x,
            weight,
            scales.astype(x.dtype),
            biases.astype(x.dtype),
            rhs_indices=indices,
            sorted_indices=sorted_indices,
            **form,
        )

    def to_lora(self, r: int = 8, scale: float = 20.0, dropout: float = 0.0) -> LoRAExpertLinear:
        """The hook of mlx-lm's `linear_to_lora_layers`, with its default values."""
        return LoRAExpertLinear(self, r=r, scale=scale, dropout=dropout)

    def with_weight(
        self, weight: mx.array, dequantize: bool = False
    ) -> ExpertLinear | QuantizedExpertLinear:
        """A layer of float32 `weight` [experts, in, out], in INT4 by our rule or in float."""
        if dequantize:
            layer = ExpertLinear(*weight.shape)
            layer.weight = weight.astype(self.scales.dtype)
            return layer
        quantised = QuantizedExpertLinear(weight, self.group_size, self.bits)
        quantised.weight, quantised.scales, quantised.biases = int4.affine(weight)
        return quantised


class Dispatch(NamedTuple):
    """Where each (token, slot) pair is computed: in blocks of rows that share one expert."""

    pairs: mx.array  # int [blocks, rows]: the pair in each row (0 where the row is padding)
    tokens: mx.array  # int [blocks, rows]: the token of that pair
    experts: mx.array  # uint32 [blocks]: the expert of each block, ascending
    rows: mx.array  # int [tokens x slots]: the row of each pair, in the pairs' own order
    # uint32 [experts, 2]: where each expert's rows begin and end, padding left out; blocks only.
    segments: mx.array | None = None


def dispatch(indices: mx.array, num_experts: int, block: int) -> Dispatch:
    """Sort the pairs of `indices` [tokens, slots] by expert and lay them out in blocks.

    Dropless: the number of blocks is the most that any routing can need, a static shape.
    """
    slots = indices.shape[-1]
    count = indices.size
    experts = indices.flatten()
    order = mx.argsort(experts)
    experts = experts[order]
    if block == 1:
        rows = mx.zeros_like(order).at[order].add(mx.arange(count, dtype=order.dtype))
        return Dispatch(order[:, None], (order // slots)[:, None], experts.astype(mx.uint32), rows)
    order = order.astype(mx.int32)
    counts = mx.zeros((num_experts,), mx.int32).at[experts].add(1)
    padded = (counts + block - 1) // block * block
    ends = mx.cumsum(padded)
    starts = ends - padded
    shift = starts - (mx.cumsum(counts) - counts)  # padding before each expert's rows
    sorted_rows = mx.arange(count) + shift[experts]
    blocks = _blocks(count, num_experts, block)
    pairs = mx.zeros((blocks * block,), mx.int32)
    pairs = mx.put_along_axis(pairs, sorted_rows, order, axis=0).reshape(blocks, block)
    # Blocks after the last expert's rows are all padding; any expert will do.
    block_experts = (mx.arange(blocks)[:, None] * block >= ends).sum(axis=-1)
    block_experts = mx.minimum(block_experts, num_experts - 1).astype(mx.uint32)
    rows = mx.put_along_axis(mx.zeros_like(order), order, sorted_rows, axis=0)
    segments = mx.stack([starts, starts + counts], axis=-1).astype(mx.uint32)
    return Dispatch(pairs, pairs // slots, block_experts, rows, segments)


def _blocks(pairs: int, num_experts: int, block: int) -> int:
    """The most blocks that any routing of `pairs` can need."""
    return (pairs + num_experts * (block - 1)) // block


def padded_rows(pairs: int, num_experts: int, *, on_cpu: bool) -> int:
    """Rows that `pairs` (token, slot) pairs are laid out in, padding included."""
    return _blocks(pairs, num_experts, _CPU_BLOCK) * _CPU_BLOCK if on_cpu else pairs


def rows_of_tokens(x: mx.array, plan: Dispatch, slots: int) -> mx.array:
    """x [tokens, hidden] -> [blocks, rows, hidden], the token of each row; its gradient gathers."""

    @mx.custom_function
    def forward(x: mx.array) -> mx.array:
        return x[plan.tokens]

    @forward.vjp
    def backward(primal: mx.array, d_rows: mx.array, output: mx.array) -> mx.array:
        return d_rows.flatten(0, 1)[plan.rows].reshape(-1, slots, d_rows.shape[-1]).sum(axis=1)

    return forward(x)


def pairs_of_rows(y: mx.array, plan: Dispatch) -> mx.array:
    """y [blocks, rows, hidden] -> [tokens x slots, hidden], the row of each pair.

    Its gradient gathers too, and is zero where a row is padding.
    """

    @mx.custom_function
    def forward(y: mx.array) -> mx.array:
        return y.flatten(0, 1)[plan.rows]

    @forward.vjp
    def backward(primal: mx.array, d_pairs: mx.array, output: mx.array) -> mx.array:
        d_rows = d_pairs[plan.pairs]
        if plan.segments is None:
            return d_rows
        row = mx.arange(plan.pairs.size).reshape(plan.pairs.shape)
        begin, end = mx.split(plan.segments.astype(row.dtype)[plan.experts], 2, axis=-1)
        return mx.where(((row >= begin) & (row < end))[..., None], d_rows, 0)

    return forward(y)


class Experts(nn.Module):
    """All routed experts of one layer: down(silu(gate(x)) * up(x)) for each selected one."""

    def __init__(self, hidden_size: int, intermediate_size: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gate_up_proj = ExpertLinear(num_experts, hidden_size, 2 * intermediate_size)
        self.down_proj = ExpertLinear(num_experts, intermediate_size, hidden_size)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """x [tokens, hidden], indices [tokens, slots] -> [tokens, slots, hidden]."""
        if indices.size < _SORT_FROM:
            return self._swiglu(x[:, None, None, :], indices, False).squeeze(-2)
        on_cpu = mx.default_device().type == mx.DeviceType.cpu
        plan = dispatch(indices, self.num_experts, _CPU_BLOCK if on_cpu else 1)
        rows = rows_of_tokens(x, plan, indices.shape[-1])
        return pairs_of_rows(self._swiglu(rows, plan.experts, True), plan).reshape(
            *indices.shape, -1
        )

    def weighted_sum(self, x: mx.array, indices: mx.array, weights: mx.array) -> mx.array:
        """x [tokens, hidden], indices and weights [tokens, slots] -> [tokens, hidden]."""
        linears = self.gate_up_proj, self.down_proj
        if indices.size >= _SORT_FROM and all(type(each) is ExpertLinear for each in linears):
            matrices = self.gate_up_proj.weight, self.down_proj.weight
            if linux_cpu.applies_to(x, weights, *matrices):
                plan = dispatch(indices, self.num_experts, _CPU_BLOCK)
                return routed_experts(x, *matrices, weights, **plan._asdict())
        y = self(x, indices)
        return (y * weights[..., None].astype(y.dtype)).sum(axis=-2)

    def _swiglu(self, x: mx.array, indices: mx.array, sorted_indices: bool) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x, indices, sorted_indices), 2, axis=-1)
        return self.down_proj(swiglu(gate, up), indices, sorted_indices)
