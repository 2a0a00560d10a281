"""Products with INT4 matrices as BLAS products of their values, where that is faster.

MLX's own quantised products on a CPU take the rows one by one: for hundreds of rows they take many
times longer than dequantising the matrix and one float32 product (`benchmarks/int4_products.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mobilemoe_mlx.linux_cpu import applies_to

# From this many rows of one matrix on.
_ROWS = 16


def is_faster(x: mx.array, matrices: int = 1) -> bool:
    """Whether x [..., in] has enough rows for each of `matrices` to dequantise all of them."""
    return applies_to(x) and x.size // x.shape[-1] >= _ROWS * matrices


def int4_product(
    x: mx.array,
    matrix: Callable[[], mx.array],
    product: Callable[[mx.array, mx.array], mx.array],
) -> mx.array:
    """product(x, matrix()), with a gradient for x alone; the matrix is made again for it, not kept.

    `matrix` gives the values, float32.
    """

    @mx.custom_function
    def forward(x: mx.array) -> mx.array:
        return product(x, matrix())

    @forward.vjp
    def backward(primal: mx.array, d_y: mx.array, output: mx.array) -> mx.array:
        values = matrix()
        return mx.vjp(lambda x: product(x, values), [primal], [d_y])[1][0]

    return forward(x)
