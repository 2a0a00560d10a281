"""An adapter on a linear layer: LoRA, and DoRA with a magnitude for each output."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mobilemoe_mlx import int4
from mobilemoe_mlx.config import ScaleRule
from mobilemoe_mlx.lora.low_rank import (
    LowRank,
    float_matrix,
    lengths,
    magnitudes,
    matrix_shape,
    straight_through,
)


class LoRALinear(LowRank):
    """`linear`(x) + scale x (x @ lora_a) @ lora_b, x [..., in].

    `linear`: a float or quantised layer without bias, weight [out, in]. `dora`: the columns of the
    sum of both matrices are scaled to the lengths `m` [out], float32, which begin as the base's.
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
        outputs, inputs = matrix_shape(linear)
        super().__init__(
            (inputs, outputs), r=r, scale=scale, dropout=dropout, scale_rule=scale_rule, key=key
        )
        self.linear = linear
        if dora:
            self.begin_magnitudes(linear)

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., in] -> [..., out]."""
        if self.scale_rule is not None:
            return self._through_int4(x)
        y = self.linear(x)
        a, b = self.thin(x.dtype)
        y = y + (self.dropped(x) @ a) @ b
        return y if "m" not in self else y * magnitudes(self.m, self._lengths()).astype(x.dtype)

    def _lengths(self) -> mx.array:
        """The columns' lengths in the sum of both matrices, float32 [out]; no gradient."""
        a, b = self.fixed()
        return lengths(self._squares, float_matrix(self.linear) @ a, a, b)

    def _through_int4(self, x: mx.array) -> mx.array:
        rule, scale, linear = self.scale_rule, self.scale, self.linear
        assert rule is not None

        def matrix(a: mx.array, b: mx.array) -> mx.array:
            return int4.fake_quantize(float_matrix(linear) + scale * (a @ b).T, rule)

        return straight_through(
            x,
            self.lora_a,
            self.lora_b,
            matrix=matrix,
            product=lambda x, weight: x @ weight.T,
            update=lambda x, a, b: (x @ a.astype(x.dtype)) @ (scale * b).astype(x.dtype),
        )
