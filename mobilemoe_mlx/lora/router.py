"""An adapter on the router of a layer."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mobilemoe_mlx.lora.low_rank import LowRank, lengths, magnitudes


class LoRARouter(LowRank):
    """`linear`'s scores of the experts + scale x (x @ lora_a) @ lora_b, in float32 like them.

    `linear`: the model's `Router`, weight [experts, hidden]; lora_a [hidden, r], lora_b
    [r, experts]. `dora`: magnitudes `m` [experts]. INT4 leaves routers alone, and so does this.
    """

    def __init__(
        self,
        linear: Any,
        *,
        r: int = 8,
        scale: float = 20.0,
        dropout: float = 0.0,
        dora: bool = False,
        key: mx.array | None = None,
    ) -> None:
        outputs, inputs = linear.weight.shape
        super().__init__((inputs, outputs), r=r, scale=scale, dropout=dropout, key=key)
        self.linear = linear
        if dora:
            self.begin_magnitudes(linear)

    def __call__(self, x: mx.array, expert_bias: mx.array) -> Any:
        """x [tokens, hidden], expert_bias [experts] -> the model's `Routing`."""
        x = x.astype(mx.float32)
        logits = self.linear.logits(x) + (self.dropped(x) @ self.lora_a) @ (
            self.scale * self.lora_b
        )
        if "m" in self:
            a, b = self.fixed()
            products = self.linear.weight.astype(mx.float32) @ a
            logits = logits * magnitudes(self.m, lengths(self._squares, products, a, b))
        return self.linear.select(logits, expert_bias)
