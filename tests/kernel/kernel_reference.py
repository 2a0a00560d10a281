"""The kernel's operators in float64 numpy, and realistic inputs for them.

Written apart from the kernel and from the package, from the published layout's description.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GROUP = 32


@dataclass
class Packed:
    """INT4 as published: `codes` uint8 [..., rows, columns / 2], `scales` float16."""

    codes: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """float64 [..., rows, columns]."""
        nibbles = np.stack([self.codes & 15, self.codes >> 4], axis=-1)
        signed = ((nibbles.astype(np.int64) ^ 8) - 8).reshape(*self.codes.shape[:-1], -1)
        scales = np.repeat(self.scales.astype(np.float64), GROUP, axis=-1)
        return signed * scales


def random_int4(rng: np.random.Generator, *shape: int, spread: float = 0.5) -> Packed:
    """Codes of every value with mean 0, and scales that differ by exp(normal x `spread`)."""
    codes = rng.integers(-7, 8, shape)
    codes[rng.random(shape) < 0.01] = -8
    nibbles = (codes & 15).astype(np.uint8)
    scales = 0.02 * np.exp(spread * rng.standard_normal((*shape[:-1], shape[-1] // GROUP)))
    return Packed(nibbles[..., 0::2] | nibbles[..., 1::2] << 4, scales.astype(np.float16))


def activations(rng: np.random.Generator, tokens: int, width: int) -> np.ndarray:
    """Normal float32, one feature of 192 8 times as large, as a residual stream's outliers are."""
    x = rng.standard_normal((tokens, width))
    x[:, 150::192] *= 8
    return np.ascontiguousarray(x, np.float32)


def relative_error(y: np.ndarray, reference: np.ndarray) -> float:
    """The L2 norm of the difference over that of `reference`."""
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def rms_norm(x: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """All matrices [in, out]."""
    return (silu(x @ gate) * (x @ up)) @ down


@dataclass
class MoeTensors:
    """A layer's feed-forward."""

    router: np.ndarray  # float32 [E, d]
    expert_bias: np.ndarray  # float32 [E]
    gate_up: Packed  # [E, d, 2 w]
    down: Packed  # [E, w, d]
    shared_gate: Packed  # [s, d]
    shared_up: Packed  # [s, d]
    shared_down: Packed  # [d, s]


def random_moe(rng: np.random.Generator, d: int, w: int, shared: int, experts: int) -> MoeTensors:
    return MoeTensors(
        (rng.standard_normal((experts, d)) * d**-0.5).astype(np.float32),
        (rng.standard_normal(experts) * 0.1).astype(np.float32),
        random_int4(rng, experts, d, 2 * w),
        random_int4(rng, experts, w, d),
        random_int4(rng, shared, d),
        random_int4(rng, shared, d),
        random_int4(rng, d, shared),
    )


def moe_ffn(
    m: MoeTensors, x: np.ndarray, slots: int, normalise: bool, scaling: float
) -> tuple[np.ndarray, np.ndarray]:
    """-> (y [T, d], the experts selected [T, slots])."""
    x = x.astype(np.float64)
    scores = 1 / (1 + np.exp(-(x @ m.router.astype(np.float64).T)))
    selected = np.argsort(-(scores + m.expert_bias), axis=-1, kind="stable")[:, :slots]
    weights = np.take_along_axis(scores, selected, axis=-1)
    if normalise:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    y = np.zeros_like(x)
    if m.shared_gate.codes.size:
        y += swiglu(x, m.shared_gate.values.T, m.shared_up.values.T, m.shared_down.values.T)
    gate_up, down = m.gate_up.values, m.down.values
    width = down.shape[1]
    for expert in np.unique(selected):
        token, slot = np.nonzero(selected == expert)
        out = swiglu(x[token], gate_up[expert][:, :width], gate_up[expert][:, width:], down[expert])
        y[token] += out * (scaling * weights[token, slot])[:, None]
    return y, selected


def rotate(x: np.ndarray, positions: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """x [T, heads, head_dim]: adjacent pairs, as complex numbers."""
    turns = np.exp(1j * positions[:, None] / periods.astype(np.float64))[:, None]
    pairs = x.astype(np.float64).reshape(*x.shape[:-1], -1, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turns
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, window: int = 0
) -> np.ndarray:
    """q [T, heads, n] at `position` on; keys, values [kv_heads, rows, n] -> [T, heads, n]."""
    count, heads, width = q.shape
    rows = np.arange(keys.shape[1])
    at = np.arange(position, position + count)[:, None]
    visible = rows <= at
    if window:
        visible &= rows > at - window
    y = np.empty(q.shape)
    for head in range(heads):
        group = head // (heads // len(keys))
        scores = np.where(visible, q[:, head] @ keys[group].T / np.sqrt(width), -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y[:, head] = shares / shares.sum(axis=-1, keepdims=True) @ values[group]
    return y
