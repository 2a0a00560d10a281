"""Causal attention in blocks of queries, with its own gradient from the saved exponentials.

A block of queries meets only the keys up to its own end, so nearly half of the square of scores is
never computed. The exponentials are kept, one float32 for each computed score, and not normalised:
the division by each row's sum is done on the head_dim values of the output and of its gradient.
"""

from __future__ import annotations

import mlx.core as mx

from mobilemoe_mlx.linux_cpu.exponential import softmax_parts

# Queries a block. Smaller ones compute fewer scores beyond the diagonal, in more and smaller
# products.
_BLOCK = 128


def scores_kept(length: int) -> int:
    """Exponentials of one head over `length` tokens that are kept for the gradient."""
    return sum(
        (min(start + _BLOCK, length) - start) * min(start + _BLOCK, length)
        for start in range(0, length, _BLOCK)
    )


def causal_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None = None
) -> mx.array:
    """Grouped-query attention over one sequence without a cache, float32.

    queries [batch, heads, tokens, head_dim], keys and values [batch, kv_heads, tokens, head_dim]
    -> the queries' shape. `mask`: bool [batch, 1, tokens, tokens], true where attention may look;
    causal, and no row empty. None: all tokens before, and the token itself.
    """
    batch, heads, length, head_dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads  # query heads that share a key/value head
    starts = range(0, length, _BLOCK)
    ends = [min(start + _BLOCK, length) for start in starts]

    def rows(x: mx.array, start: int, end: int) -> mx.array:
        """The block's rows of all heads of a group: [batch, kv_heads, group x block, head_dim]."""
        x = x.reshape(batch, kv_heads, group, length, head_dim)[..., start:end, :]
        return x.flatten(2, 3)

    def joined(blocks: list[mx.array]) -> mx.array:
        """Blocks of rows back to the queries' shape."""
        parts = [b.reshape(batch, kv_heads, group, -1, head_dim) for b in blocks]
        return mx.concatenate(parts, axis=3).reshape(queries.shape)

    def allowed(start: int, end: int) -> mx.array:
        """bool, broadcastable to the block's scores [batch, kv_heads, group x block, end]."""
        if mask is None:
            part = (mx.arange(start, end)[:, None] >= mx.arange(end))[None, None]
        else:
            part = mask[:, :, start:end, :end]
        return mx.tile(part, (1, 1, group, 1))

    @mx.custom_function
    def attend(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        out, saved = [], []
        for start, end in zip(starts, ends, strict=True):
            scores = rows(queries, start, end) * scale @ keys[:, :, :end].swapaxes(-1, -2)
            scores = mx.where(allowed(start, end), scores, -mx.inf)
            exponentials, total, _ = softmax_parts(scores)
            out.append(exponentials @ values[:, :, :end] / total)
            saved += [exponentials, total]
        return joined(out), *saved

    @attend.vjp
    def attend_vjp(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, ...],
        outputs: tuple[mx.array, ...],
    ) -> tuple[mx.array, mx.array, mx.array]:
        queries, keys, values = primals
        out, *saved = outputs
        d_queries, d_keys, d_values = [], mx.zeros_like(keys), mx.zeros_like(values)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            exponentials, total = saved[2 * i : 2 * i + 2]
            # Softmax = exponentials / total; the division moves to the gradient of the output.
            d_out = rows(cotangents[0], start, end) / total
            d_total = (d_out * rows(out, start, end)).sum(axis=-1, keepdims=True)
            d_scores = d_out @ values[:, :, :end].swapaxes(-1, -2)
            d_scores = (d_scores - d_total) * exponentials
            d_queries.append(d_scores @ keys[:, :, :end] * scale)
            later = [(0, 0), (0, 0), (0, length - end), (0, 0)]
            d_key = d_scores.swapaxes(-1, -2) @ (rows(queries, start, end) * scale)
            d_value = exponentials.swapaxes(-1, -2) @ d_out
            d_keys, d_values = d_keys + mx.pad(d_key, later), d_values + mx.pad(d_value, later)
        return joined(d_queries), d_keys, d_values

    return attend(queries, mx.contiguous(keys), mx.contiguous(values))[0]
