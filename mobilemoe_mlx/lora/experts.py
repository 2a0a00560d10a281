"""An adapter for every routed expert, computed for all of them at once on the sorted dispatch."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mobilemoe_mlx.config import ScaleRule
from mobilemoe_mlx.gather_mm import gather_mm
from mobilemoe_mlx.lora.low_rank import (
    LowRank,
    float_matrix,
    lengths,
    magnitudes,
    matrix_shape,
    rounded_sum,
    straight_through,
)


class LoRAExpertLinear(LowRank):
    """`linear` of the expert + scale x (x @ lora_a) @ lora_b of the same expert.

    `linear`: `ExpertLinear` or `QuantizedExpertLinear`, weight [experts, in, out]; lora_a
    [experts, in, r], lora_b [experts, r, out]. `dora`: magnitudes `m` [experts, out].
    """

    def __init__(
        self,
        linear: nn.Module,
        *,
        r: int = 8,
        scale: float = 20.0,
        dropout: float = 0.0,
        dora: bool = False,
        scale_rule: ScaleRule | None = None,
        key: mx.array | None = None,
    ) -> None:
        super().__init__(
            matrix_shape(linear), r=r, scale=scale, dropout=dropout, scale_rule=scale_rule, key=key
        )
        self.linear = linear
        if dora:
            self.begin_magnitudes(linear)

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x [..., rows, in] with the expert of each `indices` [...] -> [..., rows, out]."""

        def product(x: mx.array, weight: mx.array) -> mx.array:
            return gather_mm(x, weight, indices, sorted_indices)

        if self.scale_rule is not None:
            rule, scale, linear = self.scale_rule, self.scale, self.linear
            return straight_through(
                x,
                self.lora_a,
                self.lora_b,
                matrix=lambda a, b: rounded_sum(linear, scale, rule, a, b),
                product=product,
                update=lambda x, a, b: product(
                    product(x, a.astype(x.dtype)), (scale * b).astype(x.dtype)
                ),
            )
        y = self.linear(x, indices, sorted_indices)
        a, b = self.thin(x.dtype)
        y = y + product(product(self.dropped(x), a), b)
        if "m" not in self:
            return y
        # Float32 while it is gathered: its gradient adds up many rows.
        factors = magnitudes(self.m, self._lengths())[indices][..., None, :]
        return y * factors.astype(x.dtype)

    def fuse(self, dequantize: bool = False) -> nn.Module:
        """The hook of mlx_lm.fuse: the layer of the sums; INT4 stays INT4 unless `dequantize`."""
        weight = float_matrix(self.linear) + self.scale * (self.lora_a @ self.lora_b)
        return self.linear.with_weight(weight, dequantize)

    def _lengths(self) -> mx.array:
        """The columns' lengths in the sums of both matrices, float32 [experts, out]."""
        a, b = self.fixed()
        products = float_matrix(self.linear).swapaxes(-1, -2) @ a
        return lengths(self._squares, products, a, b)
