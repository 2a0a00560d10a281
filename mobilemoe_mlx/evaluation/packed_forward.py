"""The MLX model over a batch's trees at once: every token once, and none of padding.

Norms, matrices and experts see the nodes as one sequence. Attention alone knows of trees: a node
meets its ancestors and the tokens that all texts begin with, whose keys and values are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mobilemoe_mlx import linux_cpu
from mobilemoe_mlx.evaluation.token_trees import TokenTrees
from mobilemoe_mlx.linux_cpu.exponential import softmax_parts
from mobilemoe_mlx.model import Attention, DecoderLayer, Model, Routing

# Scores that are computed at once: 128 MB of float32. A long tree's queries are taken in parts.
_SCORES = 1 << 25


class KeysValues(NamedTuple):
    """One layer's, rotated and normed: [kv_heads, tokens, head_dim] each."""

    keys: mx.array
    values: mx.array


def hidden_states(
    model: Model,
    trees: TokenTrees,
    shared: Sequence[KeysValues] | None = None,
    wanted: np.ndarray | None = None,
    keep: list[KeysValues] | None = None,
) -> mx.array:
    """The normed hidden states of the `wanted` nodes (None: of all) [wanted, hidden].

    `shared`: those of the tokens before the trees, layer by layer. `wanted`: int [wanted], nodes.
    `keep` receives the nodes' own, layer by layer.
    """
    squares = _Squares.of(trees)
    positions = mx.array(trees.positions)
    before = iter(shared) if shared is not None else None
    last = model.layers[-1]

    def packed(layer: DecoderLayer) -> Callable[..., tuple[mx.array, Routing]]:
        def call(h: mx.array, mask: Any, cache: Any) -> tuple[mx.array, Routing]:
            attention, x = layer.self_attn, layer.input_layernorm(h)
            queries, own = _heads(attention, x, positions)
            if keep is not None:
                keep.append(own)
            y = _attend(attention, queries, own, next(before) if before else None, squares)
            if layer is last and wanted is not None:  # nobody asks for more
                rows = mx.array(wanted)
                y, h = y[rows], h[:, rows]
            h = h + attention.o_proj(y[None])
            y, routing = layer.feed_forward(layer.post_attention_layernorm(h))
            return h + y, routing

        return call

    return model.model(mx.array(trees.tokens)[None], wrap=packed)[0]


def _heads(attention: Attention, x: mx.array, positions: mx.array) -> tuple[mx.array, KeysValues]:
    """Queries [heads, nodes, head_dim], and the same of keys and values."""
    nodes = x.shape[1]

    def heads(y: mx.array, count: int) -> mx.array:
        return y.reshape(nodes, count, 1, attention.head_dim)  # each node a text of its own

    queries = attention.rotate(heads(attention.q_proj(x), attention.n_heads), positions)
    keys = attention.rotate(heads(attention.k_proj(x), attention.n_kv_heads), positions)
    values = heads(attention.v_proj(x), attention.n_kv_heads)
    queries, keys, values = (y.squeeze(2).swapaxes(0, 1) for y in (queries, keys, values))
    return queries, KeysValues(keys, values)


@dataclass(frozen=True)
class _Squares:
    """The trees side by side, each in a square as large as the largest tree."""

    nodes: mx.array | None  # int [trees x size]: the node at each place; None: they are in order
    places: mx.array | None  # int [nodes]: the place of each node
    ends: np.ndarray  # int [trees, size]: the place in the tree after the last descendant

    @classmethod
    def of(cls, trees: TokenTrees) -> _Squares:
        spans = trees.trees
        size = max(end - start for start, end in spans)
        ends = np.tile(np.arange(size) + 1, (len(spans), 1))  # padding sees itself alone
        for tree, (start, end) in enumerate(spans):
            ends[tree, : end - start] = trees.ends[start:end] - start
        if all(end - start == size for start, end in spans):
            return cls(None, None, ends)
        nodes = np.zeros((len(spans), size), np.int32)
        places = []
        for tree, (start, end) in enumerate(spans):
            nodes[tree, : end - start] = np.arange(start, end)
            places.append(tree * size + np.arange(end - start))
        return cls(mx.array(nodes.flatten()), mx.array(np.concatenate(places)), ends)

    def pad(self, x: mx.array) -> mx.array:
        """[heads, nodes, head_dim] -> [trees, heads, size, head_dim]."""
        x = x if self.nodes is None else mx.take(x, self.nodes, axis=1)
        return x.reshape(len(x), *self.ends.shape, x.shape[-1]).swapaxes(0, 1)

    def unpad(self, x: mx.array) -> mx.array:
        """[trees, heads, size, head_dim] -> [nodes, heads x head_dim]."""
        x = x.swapaxes(1, 2).reshape(self.ends.size, -1)
        return x if self.places is None else x[self.places]

    def parts(self, heads: int, shared: int) -> Iterator[tuple[int, int]]:
        """Parts of the squares' rows, each with at most `_SCORES` scores, if one row has fewer."""
        trees, size = self.ends.shape
        rows = max(1, _SCORES // (trees * heads * (size + shared)))
        for start in range(0, size, rows):
            yield start, min(start + rows, size)

    def mask(self, start: int, end: int) -> mx.array:
        """Which nodes before `end` those from `start` on meet: bool [trees, 1, rows, end]."""
        node, ancestor = np.arange(start, end)[:, None], np.arange(end)
        mask = (ancestor <= node) & (node < self.ends[:, None, :end])
        return mx.array(mask[:, None])


def _attend(
    attention: Attention,
    queries: mx.array,
    own: KeysValues,
    shared: KeysValues | None,
    squares: _Squares,
) -> mx.array:
    """Queries [heads, nodes, head_dim] -> [nodes, heads x head_dim]."""
    q, k, v = (squares.pad(x) for x in (queries, *own))
    scale = attention.head_dim**-0.5
    outs = []
    shared_tokens = 0 if shared is None else shared.keys.shape[1]
    for start, end in squares.parts(attention.n_heads, shared_tokens):
        part = q[:, :, start:end], k[:, :, :end], v[:, :, :end], squares.mask(start, end)
        if linux_cpu.applies_to(q, k, v):
            outs.append(_attend_in_parts(*part, shared, scale))
        else:
            outs.append(_attend_at_once(*part, shared, scale))
    return squares.unpad(outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=2))


def _attend_at_once(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    mask: mx.array,
    shared: KeysValues | None,
    scale: float,
) -> mx.array:
    """MLX's attention, over the shared keys and the trees' own: [trees, heads, rows, head_dim]."""
    if shared is not None:
        k, v = (
            mx.concatenate([mx.broadcast_to(s[None], (len(x), *s.shape)), x], axis=2)
            for s, x in zip(shared, (k, v), strict=True)
        )
        everywhere = mx.ones((*mask.shape[:3], shared.keys.shape[1]), mx.bool_)
        mask = mx.concatenate([everywhere, mask], axis=-1)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _attend_in_parts(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    mask: mx.array,
    shared: KeysValues | None,
    scale: float,
) -> mx.array:
    """The same with faster exponentials; the shared keys meet the queries of all trees at once."""
    trees, heads, rows, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads  # query heads that share a key/value head
    q = (q * scale).reshape(trees, kv_heads, group * rows, head_dim)
    scores = q @ k.swapaxes(-1, -2)
    scores = mx.where(mx.tile(mask, (1, 1, group, 1)), scores, -mx.inf)
    exponentials, total, top = softmax_parts(scores)
    out = exponentials @ v
    if shared is not None:
        together = q.swapaxes(0, 1).reshape(kv_heads, -1, head_dim)
        theirs, their_total, their_top = softmax_parts(together @ shared.keys.swapaxes(-1, -2))
        theirs = theirs @ shared.values

        def per_tree(x: mx.array) -> mx.array:
            return x.reshape(kv_heads, trees, group * rows, -1).swapaxes(0, 1)

        theirs, their_total, their_top = map(per_tree, (theirs, their_total, their_top))
        highest = mx.maximum(top, their_top)
        weight, their_weight = mx.exp(top - highest), mx.exp(their_top - highest)
        out = out * weight + theirs * their_weight
        total = total * weight + their_total * their_weight
    return (out / total).reshape(trees, heads, rows, head_dim)
