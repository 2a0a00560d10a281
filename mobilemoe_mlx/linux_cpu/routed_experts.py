"""The weighted sum of the routed experts, with a gradient made of gathers.

Each block of rows is gathered from the tokens and each token's result is gathered from the rows, in
both directions, where autodiff would scatter; the weights' gradients are one product per expert
(`mx.segmented_mm`) over its rows, padding left out, where autodiff makes one per block and adds
them up.
"""

from __future__ import annotations

import mlx.core as mx

from mobilemoe_mlx.linux_cpu import swiglu


def routed_experts(
    x: mx.array,
    gate_up: mx.array,
    down: mx.array,
    weights: mx.array,
    *,
    tokens: mx.array,
    experts: mx.array,
    pairs: mx.array,
    rows: mx.array,
    segments: mx.array,
) -> mx.array:
    """Sum over a token's slots of weight x down(silu(gate) x up), float32 [tokens, hidden].

    x [tokens, hidden], gate_up [experts, hidden, 2 x width], down [experts, width, hidden], weights
    [tokens, slots]. The layout (`experts.Dispatch`): `tokens` and `pairs` [blocks, block], the
    token and the (token, slot) pair of each row; `experts` [blocks]; `rows` [tokens x slots], the
    row of each pair; `segments` uint32 [experts, 2], where each expert's rows begin and end.
    """
    slots = weights.shape[-1]

    def per_token(y: mx.array) -> mx.array:
        """Sum of each token's rows: [blocks, block, hidden] -> [tokens, hidden]."""
        return y.flatten(0, 1)[rows].reshape(-1, slots, y.shape[-1]).sum(axis=1)

    @mx.custom_function
    def forward(
        x: mx.array, gate_up: mx.array, down: mx.array, weights: mx.array
    ) -> tuple[mx.array, ...]:
        inputs = x[tokens]
        both = mx.gather_mm(inputs, gate_up, rhs_indices=experts, sorted_indices=True)
        gate, up = (mx.contiguous(part) for part in mx.split(both, 2, axis=-1))
        inner, sigmoid = swiglu.forward(gate, up)
        weight = weights.flatten()[pairs][..., None]
        y = mx.gather_mm(inner * weight, down, rhs_indices=experts, sorted_indices=True)
        return per_token(y), inputs, gate, up, sigmoid, inner

    @forward.vjp
    def backward(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, ...],
        outputs: tuple[mx.array, ...],
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        _, gate_up, down, weights = primals
        _, inputs, gate, up, sigmoid, inner = outputs
        weight = weights.flatten()[pairs][..., None]

        def product(d_y: mx.array, matrix: mx.array) -> mx.array:
            matrix = mx.swapaxes(matrix, -1, -2)
            return mx.gather_mm(d_y, matrix, rhs_indices=experts, sorted_indices=True)

        def matrix_gradient(inputs: mx.array, d_y: mx.array) -> mx.array:
            return mx.segmented_mm(inputs.flatten(0, 1).T, d_y.flatten(0, 1), segments)

        d_y = cotangents[0][tokens]
        d_down = matrix_gradient(inner * weight, d_y)
        d_inner = product(d_y, down)
        d_weight = (d_inner * inner).sum(axis=-1).flatten()[rows].reshape(weights.shape)
        d_both = mx.concatenate(swiglu.backward(gate, up, sigmoid, d_inner * weight), axis=-1)
        d_gate_up = matrix_gradient(inputs, d_both)
        return per_token(product(d_both, gate_up)), d_gate_up, d_down, d_weight

    return forward(x, gate_up, down, weights)[0]
