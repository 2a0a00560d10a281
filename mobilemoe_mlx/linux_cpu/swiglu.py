"""silu(gate) x up with its own gradient: one exponential forward, none backward."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mobilemoe_mlx.linux_cpu import applies_to
from mobilemoe_mlx.linux_cpu.exponential import power, split
from mobilemoe_mlx.linux_cpu.untraced import untraced


@mx.compile
def _forward(
    scale: mx.array, r: mx.array, gate: mx.array, up: mx.array
) -> tuple[mx.array, mx.array]:
    sigmoid = 1.0 / (1.0 + power(scale, r))
    return gate * sigmoid * up, sigmoid


@mx.compile
def _d_gate(gate: mx.array, up: mx.array, sigmoid: mx.array, d_out: mx.array) -> mx.array:
    return d_out * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))


@mx.compile
def _d_up(gate: mx.array, sigmoid: mx.array, d_out: mx.array) -> mx.array:
    return d_out * gate * sigmoid


@untraced
def forward(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    """float32 gate and up, same shape -> (silu(gate) x up, sigmoid(gate))."""
    return _forward(*split(-gate), gate, up)


@untraced
def backward(
    gate: mx.array, up: mx.array, sigmoid: mx.array, d_out: mx.array
) -> tuple[mx.array, mx.array]:
    """Gradients for gate and up from that of the product; `sigmoid` as `forward` returned it."""
    return _d_gate(gate, up, sigmoid, d_out), _d_up(gate, sigmoid, d_out)


@mx.custom_function
def _swiglu(gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    return forward(gate, up)


@_swiglu.vjp
def _swiglu_vjp(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, mx.array]:
    gate, up = primals
    return backward(gate, up, outputs[1], cotangents[0])


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) x up, elementwise, of two arrays of one shape."""
    if not applies_to(gate, up):
        return nn.silu(gate) * up
    return _swiglu(mx.contiguous(gate), mx.contiguous(up))[0]
