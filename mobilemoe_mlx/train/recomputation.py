"""Activation checkpointing: a layer's inner values are computed again for its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


def computed_again(layer: nn.Module) -> Callable[..., Any]:
    """The decoder layer `layer` as a function that keeps nothing but its input for the gradient.

    Unlike `nn.utils.checkpoint`, whose layers MLX may compute again long before their gradients are
    due, this waits for the gradient of the output.
    """

    def call(x: mx.array, *others: Any) -> Any:
        trained = tree_flatten(layer.trainable_parameters())
        names = [name for name, _ in trained]

        def inner(x: mx.array, *weights: mx.array) -> tuple[mx.array, ...]:
            layer.update(tree_unflatten(list(zip(names, weights, strict=True))))
            y, routing = layer(x, *others)
            return y, *routing

        @mx.custom_function
        def forward(x: mx.array, *weights: mx.array) -> tuple[mx.array, ...]:
            return inner(x, *weights)

        @forward.vjp
        def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
            one = isinstance(primals, mx.array)  # of a layer in which nothing is trained
            inputs = mx.depends([primals] if one else list(primals), [cotangents[0]])
            gradients = mx.vjp(inner, inputs, list(cotangents))[1]
            return gradients[0] if one else tuple(gradients)

        y, *routing = forward(x, *(weight for _, weight in trained))
        return y, routing

    return call
