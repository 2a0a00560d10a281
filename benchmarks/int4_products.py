"""MLX's own INT4 products on a CPU beside one dequantisation and a BLAS product, forward and back.

    python benchmarks/int4_products.py

At S's widths, for rows of one matrix and for rows of 32 experts. Prints milliseconds of each; the
threshold of `linux_cpu/int4_product.py` follows from them. A minute on a quiet machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mobilemoe_mlx import mlx_on_linux, text_table

mlx_on_linux.prepare()  # before MLX is imported

import mlx.core as mx  # noqa: E402

HIDDEN, WIDTH, EXPERTS, BLOCK = 768, 768, 32, 32
FORM = {"group_size": 32, "bits": 4}


def milliseconds(call: Callable[[], object], rounds: int = 2) -> float:
    mx.eval(call())
    start = time.perf_counter()
    for _ in range(rounds):
        mx.eval(call())
    return (time.perf_counter() - start) / rounds * 1e3


def both(product: Callable[[mx.array], mx.array], x: mx.array) -> list[float]:
    """Forward, and forward with the gradient of x."""
    d_y = mx.random.normal(product(x).shape)
    mx.eval(d_y)
    return [
        milliseconds(lambda: product(x)),
        milliseconds(lambda: mx.vjp(product, [x], [d_y])),
    ]


def main() -> None:
    rows = [["rows", "MLX", "with gradient", "dequantised", "with gradient"]]
    packed = mx.quantize(mx.random.normal((WIDTH, HIDDEN)), **FORM)
    for count in (4, 16, 64, 512):
        x = mx.random.normal((count, HIDDEN))
        mlx = both(lambda x: mx.quantized_matmul(x, *packed, transpose=True, **FORM), x)
        ours = both(lambda x: x @ mx.dequantize(*packed, **FORM).T, x)
        rows.append([f"{count}, one matrix", *(f"{t:.1f}" for t in (*mlx, *ours))])
    packed = mx.quantize(mx.random.normal((EXPERTS, HIDDEN, 2 * WIDTH)), **FORM)
    for blocks in (4, 16, 64):
        x = mx.random.normal((blocks, BLOCK, HIDDEN))
        indices = mx.sort(mx.random.randint(0, EXPERTS, (blocks,))).astype(mx.uint32)
        of = {"rhs_indices": indices, "sorted_indices": True}
        mlx = both(lambda x: mx.gather_qmm(x, *packed, transpose=False, **FORM, **of), x)  # noqa: B023
        ours = both(lambda x: mx.gather_mm(x, mx.dequantize(*packed, **FORM), **of), x)  # noqa: B023
        label = f"{blocks * BLOCK} of {EXPERTS} experts"
        rows.append([label, *(f"{t:.1f}" for t in (*mlx, *ours))])
    print(text_table.columns(rows))


if __name__ == "__main__":
    main()
