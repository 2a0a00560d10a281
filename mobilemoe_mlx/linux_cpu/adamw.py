"""MLX's AdamW in three loops over each tensor instead of thirteen."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers as optim

from mobilemoe_mlx.linux_cpu import applies_to


@mx.compile
def _first_moment(
    moment: mx.array, gradient: mx.array, kept: mx.array, taken: mx.array
) -> mx.array:
    return kept * moment + taken * gradient


@mx.compile
def _second_moment(
    moment: mx.array, gradient: mx.array, kept: mx.array, taken: mx.array
) -> mx.array:
    return kept * moment + taken * mx.square(gradient)


@mx.compile
def _updated(
    parameter: mx.array,
    first: mx.array,
    second: mx.array,
    kept: mx.array,
    first_scale: mx.array,
    second_scale: mx.array,
    eps: mx.array,
) -> mx.array:
    return parameter * kept - first_scale * first / (mx.sqrt(second) * second_scale + eps)


class AdamW(optim.AdamW):
    """`mlx.optimizers.AdamW` with bias correction, and with the same state."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """The updated parameter, moments in `state` moved; gradient and parameter of one shape."""
        if not applies_to(gradient, parameter):
            return super().apply_single(gradient, parameter, state)
        # 1 - beta is taken in double precision, as MLX's own does.
        (beta1, taken1), (beta2, taken2) = ((mx.array(b), mx.array(1 - b)) for b in self.betas)
        state["m"] = _first_moment(state["m"], gradient, beta1, taken1)
        state["v"] = _second_moment(state["v"], gradient, beta2, taken2)
        return _updated(
            parameter,
            state["m"],
            state["v"],
            1 - self.learning_rate * self.weight_decay,
            self.learning_rate / (1 - beta1**self.step),
            mx.rsqrt(1 - beta2**self.step),
            mx.array(self.eps),
        )
