"""The custom layers in numpy, as coreml/README.md describes them, from their packed bytes.

Written for reading. Sums, roots, exponentials and angles are taken in float64, so that what an
implementation differs by is its own error; scores of the router are rounded to float32, which is
where ties are decided, and outputs to float32, which is what travels between layers.

`weights`: one array of bytes (uint8) per entry, in the contract's order, as an app gets them.
`parameters`: a layer's own. Arrays are float32 unless said otherwise; T is the number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Parameters = Mapping[str, Any]

# Values unpacked together: 32 MB in float64.
_BLOCK = 4_000_000


class ExpertsResult(NamedTuple):
    """What MobileMoEExperts computes; the last three are the router's decision, for checks."""

    residual: np.ndarray  # [T, hidden_size]
    scores: np.ndarray  # [T, experts], with bias
    experts: np.ndarray  # int [T, experts_per_token], by falling score
    expert_weights: np.ndarray  # [T, experts_per_token]


def embedding(p: Parameters, weights: Sequence[np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """tokens [T] (ids as float32) -> residual [T, hidden_size]."""
    codes, scales = _packed(weights, 0, p["hidden_size"], p)
    rows = tokens.astype(np.int64)
    return dequantize(codes[rows], scales[rows]).astype(np.float32)


def attention(
    p: Parameters,
    weights: Sequence[np.ndarray],
    residual: np.ndarray,
    position: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (residual [T, hidden_size], new_keys and new_values [kv_heads, T, head_dim]).

    residual [T, hidden_size]; position [1]: of the first token; caches [layers, kv_heads, context,
    head_dim], of which rows 0 to position - 1 of this layer are read.
    """
    d, heads, kv_heads, width = p["hidden_size"], p["heads"], p["kv_heads"], p["head_dim"]
    start, count = int(position[0]), len(residual)

    x = _rms_norm(residual, p["norm_eps"]) * _floats(weights[0])
    query = _linear(x, *_packed(weights, 1, d, p)).reshape(count, heads, width)
    key = _linear(x, *_packed(weights, 3, d, p)).reshape(count, kv_heads, width)
    value = _linear(x, *_packed(weights, 5, d, p)).reshape(count, kv_heads, width)

    angles = np.arange(start, start + count)[:, None] / _floats(weights[9])  # [T, head_dim / 2]
    query, key = rotate(query, angles), rotate(key, angles)
    if p["qk_norm"]:
        query, key = _rms_norm(query, p["qk_norm_eps"]), _rms_norm(key, p["qk_norm_eps"])
    new_keys, new_values = key.transpose(1, 0, 2), value.transpose(1, 0, 2)

    keys = np.concatenate([key_cache[p["layer"], :, :start], new_keys], axis=1)
    values = np.concatenate([value_cache[p["layer"], :, :start], new_values], axis=1)
    visible = np.arange(start + count) <= np.arange(start, start + count)[:, None]  # [T, rows]
    mixed = np.empty((count, heads, width))
    for head in range(heads):
        group = head // (heads // kv_heads)
        scores = query[:, head] @ keys[group].T * p["score_scale"]
        scores = np.where(visible, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed[:, head] = shares / shares.sum(axis=-1, keepdims=True) @ values[group]

    out = residual + _linear(
        mixed.reshape(count, heads * width), *_packed(weights, 7, heads * width, p)
    )
    return (
        out.astype(np.float32),
        np.ascontiguousarray(new_keys, np.float32),
        np.ascontiguousarray(new_values, np.float32),
    )


def experts(p: Parameters, weights: Sequence[np.ndarray], residual: np.ndarray) -> ExpertsResult:
    """residual [T, hidden_size] -> the residual with the experts' sum added, and the routing."""
    d, width, shared = p["hidden_size"], p["expert_width"], p["shared_width"]
    x = _rms_norm(residual, p["norm_eps"]) * _floats(weights[0])

    logits = (x @ _floats(weights[1]).reshape(p["experts"], d).T).astype(np.float32)
    scores = _sigmoid(logits.astype(np.float64)).astype(np.float32)
    biased = scores + _floats(weights[2]).astype(np.float32)
    # A stable sort, so that the lower index wins a tie.
    selected = np.argsort(-biased, axis=-1, kind="stable")[:, : p["experts_per_token"]]
    shares = np.take_along_axis(scores, selected, axis=-1).astype(np.float64)
    if p["normalize"]:
        shares = shares / (shares.sum(axis=-1, keepdims=True) + p["normalize_eps"])
    shares = shares * p["weight_scale"]

    gate_up_codes, gate_up_scales = _packed(weights, 3, 2 * width, p, p["experts"])
    down_codes, down_scales = _packed(weights, 5, d, p, p["experts"])
    total = residual.astype(np.float64)
    for expert in np.unique(selected):
        token, slot = np.nonzero(selected == expert)
        # Stored [in, out]: rows are inputs.
        both = x[token] @ dequantize(gate_up_codes[expert], gate_up_scales[expert])
        hidden = _silu(both[:, :width]) * both[:, width:]
        out = hidden @ dequantize(down_codes[expert], down_scales[expert])
        total[token] += out * shares[token, slot, None]

    gate = _linear(x, *_packed(weights, 7, d, p))
    up = _linear(x, *_packed(weights, 9, d, p))
    total += _linear(_silu(gate) * up, *_packed(weights, 11, shared, p))
    return ExpertsResult(total.astype(np.float32), biased, selected, shares.astype(np.float32))


def cache_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """`layers` arrays [kv_heads, T, head_dim] -> [layers, kv_heads, T, head_dim]."""
    return np.stack(rows)


def head(
    p: Parameters,
    weights: Sequence[np.ndarray],
    table: Sequence[np.ndarray],
    residual: np.ndarray,
) -> np.ndarray:
    """residual [T, hidden_size] -> logits [1 or T, vocab_size]: the last token's, or all.

    `table`: the two entries of the MobileMoEEmbedding layer with the same parameter `table`.
    """
    if p["logits"] == "last":
        residual = residual[-1:]
    x = _rms_norm(residual, p["norm_eps"]) * _floats(weights[0])
    return _linear(x, *_packed(table, 0, p["hidden_size"], p)).astype(np.float32)


def unpack(codes: np.ndarray) -> np.ndarray:
    """uint8 [..., n] -> int8 [..., 2 n] in -8..7: the low four bits first, two's complement."""
    low, high = codes & 15, codes >> 4
    nibbles = np.stack([low, high], axis=-1).reshape(*codes.shape[:-1], -1).astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)


def dequantize(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 [..., n / 2] and float16 [..., n / group] -> float64 [..., n]: code x scale, exact."""
    values = unpack(codes)
    groups = values.reshape(*scales.shape, -1) * scales.astype(np.float64)[..., None]
    return groups.reshape(values.shape)


def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """x [T, heads, head_dim]: turn each adjacent pair by its angle, [T, head_dim / 2] radians."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return pairs.reshape(x.shape)


def _packed(
    weights: Sequence[np.ndarray], index: int, columns: int, p: Parameters, *leading: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [..., rows, columns / 2] and scales [..., rows, columns / group_size]: two entries."""
    codes = weights[index].reshape(*leading, -1, columns // 2)
    scales = weights[index + 1].view("<f2").reshape(*leading, -1, columns // p["group_size"])
    return codes, scales


def _floats(entry: np.ndarray) -> np.ndarray:
    return entry.view("<f4").astype(np.float64)


def _linear(x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """x [T, in] times the packed [out, in], transposed -> float64 [T, out]."""
    step = max(1, _BLOCK // (2 * codes.shape[1]))
    blocks = [
        x @ dequantize(codes[i : i + step], scales[i : i + step]).T
        for i in range(0, len(codes), step)
    ]
    return np.concatenate(blocks, axis=-1)


def _rms_norm(x: np.ndarray, eps: float) -> np.ndarray:
    """x over its root mean square along the last axis, float64."""
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))  # without overflow


def _silu(x: np.ndarray) -> np.ndarray:
    return x * _sigmoid(x)
