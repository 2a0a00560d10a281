"""What all adapters have: two thin matrices, a scale, dropout, lengths, the way through INT4."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mobilemoe_mlx import int4
from mobilemoe_mlx.config import ScaleRule


class LowRank(nn.Module):
    """The update scale x lora_a @ lora_b of a matrix [..., in, out].

    lora_a [..., in, r] is uniform up to 1 / sqrt(in) and lora_b [..., r, out] zero (mlx-lm's
    initial values), float32: at first the adapted layer is its base. `scale_rule`: compute the
    INT4 rounding of base + update by that rule, with straight-through gradients, instead of
    adding the update to what the base computes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        r: int,
        scale: float,
        dropout: float = 0.0,
        scale_rule: ScaleRule | None = None,
        key: mx.array | None = None,
    ) -> None:
        super().__init__()
        if scale_rule is not None and dropout:
            raise ValueError("no dropout through INT4: what is rounded is the sum of both matrices")
        *experts, inputs, outputs = shape
        bound = 1 / math.sqrt(inputs)
        self.lora_a = mx.random.uniform(-bound, bound, (*experts, inputs, r), key=key)
        self.lora_b = mx.zeros((*experts, r, outputs))
        self.scale, self.scale_rule = scale, scale_rule
        self.dropout_rate = dropout
        # What the next masks are drawn with; None: MLX's own state. A layer that is computed again
        # for its gradient (activation checkpointing) must draw the same mask.
        self._dropout_key: mx.array | None = None

    def dropped(self, x: mx.array) -> mx.array:
        """`x` with dropout, in training."""
        if not self.training or self.dropout_rate == 0.0:
            return x
        kept = 1 - self.dropout_rate
        mask = mx.random.bernoulli(kept, x.shape, key=self._dropout_key)
        return x * mask.astype(x.dtype) * (1 / kept)

    def begin_magnitudes(self, base: nn.Module) -> None:
        """Make it DoRA: magnitudes `m` that begin as the lengths of the base's columns, float32."""
        self._squares = mx.square(float_matrix(base)).sum(axis=1)
        self.m = mx.sqrt(self._squares)

    def fixed(self) -> tuple[mx.array, mx.array]:
        """lora_a and scale x lora_b in float32, without a gradient: what lengths are made of."""
        return mx.stop_gradient(self.lora_a), self.scale * mx.stop_gradient(self.lora_b)

    def thin(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """lora_a and scale x lora_b in the type of the activations."""
        return self.lora_a.astype(dtype), (self.scale * self.lora_b).astype(dtype)


def lengths(squares: mx.array, products: mx.array, a: mx.array, b: mx.array) -> mx.array:
    """Lengths of the columns of W + a @ b, float32 [..., out], without that sum being formed.

    `squares` [..., out]: squared lengths of W's columns; `products` [..., out, r]: W^T @ a;
    a [..., in, r], b [..., r, out]. Exactly the square root of `squares` where b is zero.
    """
    b = b.swapaxes(-1, -2)  # [..., out, r]
    own = b @ (a.swapaxes(-1, -2) @ a)
    return mx.sqrt(mx.maximum(squares + ((2 * products + own) * b).sum(axis=-1), 0.0))


def magnitudes(m: mx.array, lengths: mx.array) -> mx.array:
    """DoRA's factor of each output, m / its column's length; 1 where the column is zero."""
    lengths = mx.stop_gradient(lengths)
    return mx.where(lengths > 0, m / mx.where(lengths > 0, lengths, 1.0), 1.0)


def matrix_shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of the weight that a float or quantised layer stands for."""
    *rows, columns = layer.weight.shape
    return (*rows, columns * 32 // layer.bits) if "scales" in layer else (*rows, columns)


def float_matrix(base: nn.Module) -> mx.array:
    """The weight of a float or quantised layer, float32, in the shape the float layer has."""
    if "scales" not in base:
        return base.weight.astype(mx.float32)
    return mx.dequantize(
        base.weight,
        base.scales.astype(mx.float32),
        base.biases.astype(mx.float32),
        group_size=base.group_size,
        bits=base.bits,
    )


def straight_through(
    x: mx.array,
    a: mx.array,
    b: mx.array,
    *,
    matrix: Callable[[mx.array, mx.array], mx.array],
    product: Callable[[mx.array, mx.array], mx.array],
    update: Callable[[mx.array, mx.array, mx.array], mx.array],
) -> mx.array:
    """product(x, rounded matrix(a, b)), whose gradients for `a` and `b` are those of `update`.

    Rounding counts as the identity in the backward pass, so `a` and `b` have the gradients of plain
    low-rank adapters, update(x, a, b), and nothing of the matrix's size is formed for them. The
    rounded matrix is made again there, not kept.
    """

    @mx.custom_function
    def forward(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return product(x, matrix(a, b).astype(x.dtype))

    @forward.vjp
    def backward(
        primals: tuple[mx.array, ...], d_y: mx.array, output: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        x, a, b = primals
        rounded = matrix(a, b).astype(x.dtype)
        (d_x,) = mx.vjp(lambda x: product(x, rounded), [x], [d_y])[1]
        d_a, d_b = mx.vjp(lambda a, b: update(x, a, b), [a, b], [d_y])[1]
        return d_x, d_a, d_b

    return forward(x, a, b)


def rounded_sum(
    base: nn.Module, scale: float, rule: ScaleRule, a: mx.array, b: mx.array
) -> mx.array:
    """INT4 rounding of a base matrix [..., in, out] + scale x a @ b, float32."""
    return int4.fake_quantize(float_matrix(base) + scale * (a @ b), rule)
