"""An adapter on the embedding, which is the output head too."""

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
    rounded_sum,
    straight_through,
)


class LoRAEmbedding(LowRank):
    """`embedding` + scale x lora_a @ lora_b, looked up and as the tied head.

    `embedding`: float or quantised, weight [vocabulary, hidden]; lora_a [vocabulary, r], lora_b
    [r, hidden]. `dora`: the rows have the lengths `m` [vocabulary].
    """

    def __init__(
        self,
        embedding: nn.Module,
        *,
        r: int = 8,
        scale: float = 20.0,
        dropout: float = 0.0,
        dora: bool = False,
        scale_rule: ScaleRule | None = None,
        key: mx.array | None = None,
    ) -> None:
        super().__init__(
            matrix_shape(embedding),
            r=r,
            scale=scale,
            dropout=dropout,
            scale_rule=scale_rule,
            key=key,
        )
        self.embedding = embedding
        if dora:
            self.begin_magnitudes(embedding)

    def __call__(self, x: mx.array) -> mx.array:
        """Token ids x [...] -> [..., hidden]."""
        y = self.embedding(x)
        if self.scale_rule is not None:
            rows = y.astype(mx.float32) + self.scale * (self.lora_a[x] @ self.lora_b)
            rounded = int4.fake_quantize(rows, self.scale_rule)
            # Codes x scales do not fit into bfloat16: what follows is float32 too.
            return rounded if y.dtype == mx.bfloat16 else rounded.astype(y.dtype)
        a, b = self.thin(y.dtype)
        y = y + self.dropped(a[x] @ b)
        return y if "m" not in self else y * self._factors()[x][..., None].astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """Hidden states x [..., hidden] -> logits [..., vocabulary]."""
        if self.scale_rule is not None:
            rule, scale, embedding = self.scale_rule, self.scale, self.embedding
            return straight_through(
                x,
                self.lora_a,
                self.lora_b,
                matrix=lambda a, b: rounded_sum(embedding, scale, rule, a, b),
                product=lambda x, weight: x @ weight.T,
                update=lambda x, a, b: (x @ (scale * b).astype(x.dtype).T) @ a.astype(x.dtype).T,
            )
        y = self.embedding.as_linear(x)
        a, b = self.thin(x.dtype)
        y = y + (self.dropped(x) @ b.T) @ a.T
        return y if "m" not in self else y * self._factors().astype(y.dtype)

    def _factors(self) -> mx.array:
        """m / the length of each row of the sum of both matrices, float32 [vocabulary]."""
        a, b = self.fixed()
        products = float_matrix(self.embedding) @ b.T
        # The rows of W + a b are the columns of W^T + b^T a^T.
        return magnitudes(self.m, lengths(self._squares, products, b.T, a.T))
