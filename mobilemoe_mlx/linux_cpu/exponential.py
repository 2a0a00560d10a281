"""exp of float32 arrays as a polynomial, and what is made of it: sigmoid and log-sum-exp.

e^x = 2^k e^r with k the integer nearest to x / ln 2 and r = x - k ln 2; e^r is a polynomial of
degree five (relative error 9e-8). `mx.compile` hands each function to the C++ compiler, which
makes one loop of vector instructions of it, if the arrays are contiguous.
"""

from __future__ import annotations

import mlx.core as mx

from mobilemoe_mlx.linux_cpu import applies_to
from mobilemoe_mlx.linux_cpu.untraced import untraced

_LOG2_E = 1.4426950408889634
# ln 2 in two parts; the first has nine bits, so that its product with k is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.1219444005469057e-4

# e^r on -ln 2 / 2 .. ln 2 / 2: the minimax polynomial of the relative error with e^0 = 1.
_C1, _C2, _C3, _C4, _C5 = (
    0.9999997054349326,
    0.4999914614894713,
    0.16667640062899106,
    0.04189839006359537,
    0.008290229467551907,
)


@mx.compile
def _exponent_bits(x: mx.array) -> mx.array:
    """float32 x -> int32, the bits of float32 2^k: those of 0 and infinity beyond its range."""
    y = x * _LOG2_E
    y = mx.where(y < -127.0, -127.0, y)
    y = mx.where(y > 128.0, 128.0, y)
    return (y + 127.5).astype(mx.int32) << 23


@mx.compile
def _remainder(x: mx.array, bits: mx.array) -> mx.array:
    """x - k ln 2, bounded where 2^k is 0 or infinite; a NaN stays: no comparison holds for it."""
    k = ((bits >> 23) - 127).astype(mx.float32)
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    r = mx.where(r < -1.0, -1.0, r)
    return mx.where(r > 1.0, 1.0, r)


def split(x: mx.array) -> tuple[mx.array, mx.array]:
    """float32 `x` -> float32 (2^k, r) of the same shape: arguments for `power`."""
    x = mx.contiguous(x)
    bits = _exponent_bits(x)
    return bits.view(mx.float32), _remainder(x, bits)


def power(scale: mx.array, r: mx.array) -> mx.array:
    """scale x e^r, for use inside compiled functions: e^x from `split`'s results."""
    square = r * r
    low = (1.0 + _C1 * r) + (_C2 + _C3 * r) * square
    return (low + (_C4 + _C5 * r) * (square * square)) * scale


_power = mx.compile(power)


@untraced
def exp(x: mx.array) -> mx.array:
    """e^x of float32 `x`, elementwise; 0 and infinity beyond -88..88. Not differentiable."""
    return _power(*split(x))


@mx.compile
def _sigmoid_of_parts(scale: mx.array, r: mx.array) -> mx.array:
    return 1.0 / (1.0 + power(scale, r))


@mx.custom_function
@untraced
def _sigmoid(x: mx.array) -> mx.array:
    return _sigmoid_of_parts(*split(-x))


@_sigmoid.vjp
def _sigmoid_vjp(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output * (1 - output)


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + e^-x), elementwise."""
    return _sigmoid(x) if applies_to(x) else mx.sigmoid(x)


def softmax_parts(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """x [..., n] -> (e^(x - top) [..., n], its sum [..., 1], top [..., 1]); not differentiable.

    `top` is the maximum of each row.
    """
    top = x.max(axis=-1, keepdims=True)
    exponentials = exp(x - top) if applies_to(x) else mx.exp(x - top)
    return exponentials, exponentials.sum(axis=-1, keepdims=True), top


@mx.custom_function
def _logsumexp(x: mx.array) -> tuple[mx.array, mx.array]:
    exponentials, total, top = softmax_parts(x)
    return (mx.log(total) + top).squeeze(-1), exponentials / total


@_logsumexp.vjp
def _logsumexp_vjp(
    x: mx.array, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> mx.array:
    return cotangents[0][..., None] * outputs[1]


def logsumexp(x: mx.array) -> mx.array:
    """Logarithm of the sum of e^x over the last axis: [..., n] -> [...]."""
    return _logsumexp(x)[0] if applies_to(x) else mx.logsumexp(x, axis=-1)
