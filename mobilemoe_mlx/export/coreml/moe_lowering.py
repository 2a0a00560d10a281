"""Lower `moe_ffn` to core ops: one function per form, chosen by what the op is given.

Both forms leave the packed codes packed and unpack only the experts they gathered, inside the
program. To add a form, write a function `(op, routing, x16) -> Var` and list it in `LOWERINGS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from coremltools.converters.mil.mil import Block, Operation, Program, Var
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass

from mobilemoe_mlx.config import NORMALIZE_EPS
from mobilemoe_mlx.export.coreml import moe_op  # noqa: F401 (registers the op)
from mobilemoe_mlx.export.coreml.expert_blocks import block_rows, most_blocks
from mobilemoe_mlx.export.coreml.int4_matmul import packed_matmul

PASS = "moe::lower_moe_ffn"

# The sorted form unpacks its blocks' experts in turns, so that one turn's unpacked gate and up
# projections stay below this: the peak memory of a prefill would otherwise grow with the model.
UNPACKED_BYTES = 64 * 2**20


class Routing(NamedTuple):
    """The router's decision for each of T tokens."""

    selected: Var  # float32 [T, E], 1 for a selected expert
    one_hot: Var  # float32 [T, k, E], one row per slot
    experts: Var  # uint16 [T, k], by falling score
    weights: Var  # float32 [T, k]


class Lowering(NamedTuple):
    """One form: core ops for the routed experts, float32 [T, d], of an op that it fits."""

    lower: Callable[[Operation, Routing, Var], Var]
    fits: Callable[[Operation], bool]


@register_pass(namespace="moe")
class lower_moe_ffn(AbstractGraphPass):  # coremltools takes the pass's name from the class
    """Replace every `moe_ffn` of a program by core ops."""

    def apply(self, prog: Program) -> None:
        for function in prog.functions.values():
            self._lower_block(function)

    @block_context_manager
    def _lower_block(self, block: Block) -> None:
        for op in list(block.operations):
            if op.op_type == "moe_ffn":
                _lower(op)


def _lower(op: Operation) -> None:
    block = op.enclosing_block
    with mb.set_before_op(op):
        routing = _route(op)
        x16 = mb.cast(x=op.x, dtype="fp16")
        routed = choose(op).lower(op, routing, x16)
        result = mb.add(x=routed, y=_shared_expert(op, x16), name=op.outputs[0].name)
    block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=result)
    block.remove_ops([op])


def choose(op: Operation) -> Lowering:
    """The first form of `LOWERINGS` that fits `op`."""
    return next(lowering for lowering in LOWERINGS if lowering.fits(op))


def _route(op: Operation) -> Routing:
    """Rank experts by counting those that come before them, which no sort's ties can disturb."""
    experts, top_k = op.router.shape[0], op.top_k.val
    prefix = op.name.removesuffix("moe")  # layers_3_moe -> layers_3_scores, ... (names.py)
    logits = mb.linear(x=op.x, weight=op.router)
    scores = mb.sigmoid(x=logits)
    biased = mb.add(x=scores, y=op.expert_bias, name=f"{prefix}scores")
    mine = mb.expand_dims(x=biased, axes=[2])  # [T, E, 1]
    others = mb.expand_dims(x=biased, axes=[1])  # [T, 1, E]
    lower_index = mb.const(val=np.tril(np.ones((experts, experts), np.float32), -1))
    lower_index.op.weight_id = f"lower_index_{experts}"  # one blob for all layers
    higher = mb.cast(x=mb.greater(x=others, y=mine), dtype="fp32")
    equal = mb.cast(x=mb.equal(x=others, y=mine), dtype="fp32")
    before = mb.add(x=higher, y=mb.mul(x=equal, y=lower_index))
    rank = mb.reduce_sum(x=before, axes=[2], keep_dims=False)  # [T, E], 0 is the best
    slots = np.arange(top_k, dtype=np.float32)[None, :, None]
    chosen = mb.equal(x=mb.expand_dims(x=rank, axes=[1]), y=slots)
    one_hot = mb.cast(x=chosen, dtype="fp32", name=f"{prefix}selection")
    index = mb.reduce_sum(
        x=mb.mul(x=one_hot, y=np.arange(experts, dtype=np.float32)), axes=[2], keep_dims=False
    )
    weights = mb.reduce_sum(
        x=mb.mul(x=one_hot, y=mb.expand_dims(x=scores, axes=[1])), axes=[2], keep_dims=False
    )
    if op.norm_topk_prob.val:
        total = mb.reduce_sum(x=weights, axes=[1], keep_dims=True)
        weights = mb.real_div(x=weights, y=mb.add(x=total, y=np.float32(NORMALIZE_EPS)))
    return Routing(
        selected=mb.cast(x=mb.less(x=rank, y=np.float32(top_k)), dtype="fp32"),
        one_hot=one_hot,
        experts=mb.cast(x=index, dtype="uint16"),
        weights=mb.mul(
            x=weights,
            y=np.float32(op.routed_scaling_factor.val),
            name=f"{prefix}expert_weights",
        ),
    )


def _shared_expert(op: Operation, x16: Var) -> Var:
    """x16 [T, d] -> float32 [T, d]."""
    h = _swiglu(mb.linear(x=x16, weight=op.shared_gate_up))
    return mb.cast(x=mb.linear(x=h, weight=op.shared_down), dtype="fp32")


def _swiglu(gate_up: Var) -> Var:
    """[..., 2w] -> silu(first half) * second half, [..., w]."""
    gate, up = mb.split(x=gate_up, num_splits=2, axis=-1)
    return mb.mul(x=mb.silu(x=gate), y=up)


def _experts(op: Operation, x: Var, indices: Var) -> Var:
    """x fp16 [N, rows, d] through the expert of each `indices` uint16 [N] -> [N, rows, d]."""
    h = _swiglu(packed_matmul(x, *_slabs(op.gate_up_codes, op.gate_up_scale, indices)))
    return packed_matmul(h, *_slabs(op.down_codes, op.down_scale, indices))


def _slabs(codes: Var, scale: Var, indices: Var) -> tuple[Var, Var]:
    return (
        mb.gather(x=codes, indices=indices, axis=0),
        mb.gather(x=scale, indices=indices, axis=0),
    )


def _weighted_sum(y: Var, weights: Var) -> Var:
    """fp16 y [T, k, d], float32 weights [T, k] -> float32 [T, d]."""
    y = mb.mul(x=mb.cast(x=y, dtype="fp32"), y=mb.expand_dims(x=weights, axes=[2]))
    return mb.reduce_sum(x=y, axes=[1], keep_dims=False)


def gathered(op: Operation, routing: Routing, x16: Var) -> Var:
    """For one token: gather its k experts and multiply. x16 [1, d] -> float32 [1, d]."""
    d = op.x.shape[1]
    indices = mb.reshape(x=routing.experts, shape=[-1])
    y = _experts(op, mb.expand_dims(x=x16, axes=[0]), indices)  # [k, 1, d]
    return _weighted_sum(mb.reshape(x=y, shape=[1, op.top_k.val, d]), routing.weights)


def sorted_blocks(op: Operation, routing: Routing, x16: Var) -> Var:
    """For many tokens: sort (token, slot) pairs by expert, in blocks of rows of one expert.

    Dropless with static shapes: as many blocks as the worst routing needs. x16 [T, d] -> float32
    [T, d].
    """
    tokens, d = op.x.shape
    experts, top_k = op.router.shape[0], op.top_k.val
    rows = block_rows(tokens)
    blocks = most_blocks(tokens, top_k, experts, rows)

    # How many tokens each expert has had up to and with each token, and where its blocks begin.
    so_far = mb.cumsum(x=routing.selected, axis=0)  # [T, E]
    counts = mb.slice_by_index(x=so_far, begin=[tokens - 1, 0], end=[tokens, experts])  # [1, E]
    needed = mb.mul(x=mb.add(x=counts, y=np.float32(rows - 1)), y=np.float32(1 / rows))
    needed = mb.floor(x=needed)  # [1, E], in blocks
    ends = mb.cumsum(x=needed, axis=1)
    starts = mb.sub(x=ends, y=needed)

    # Whose block is it, and which of the expert's tokens is in each of its rows.
    number = np.arange(blocks, dtype=np.float32)
    passed = mb.cast(x=mb.greater_equal(x=number[:, None], y=ends), dtype="fp32")
    owner = mb.reduce_sum(x=passed, axes=[1], keep_dims=False)
    owner = mb.minimum(x=owner, y=np.float32(experts - 1))  # of blocks beyond those needed
    owner = mb.cast(x=owner, dtype="uint16")  # [blocks]
    first = mb.gather(x=mb.reshape(x=starts, shape=[experts]), indices=owner, axis=0)
    nth = mb.mul(x=mb.sub(x=number, y=first), y=np.float32(rows))
    nth = mb.add(x=mb.expand_dims(x=nth, axes=[1]), y=np.arange(rows, dtype=np.float32)[None])
    had = mb.gather(x=mb.transpose(x=so_far, perm=[1, 0]), indices=owner, axis=0)  # [blocks, T]
    earlier = mb.less_equal(x=mb.expand_dims(x=had, axes=[1]), y=mb.expand_dims(x=nth, axes=[2]))
    token = mb.reduce_sum(x=mb.cast(x=earlier, dtype="fp32"), axes=[2], keep_dims=False)
    token = mb.minimum(x=token, y=np.float32(tokens - 1))  # in rows that are never read
    token = mb.cast(x=mb.reshape(x=token, shape=[-1]), dtype="uint16")
    sorted_x = mb.reshape(x=mb.gather(x=x16, indices=token, axis=0), shape=[blocks, rows, d])

    y = _in_turns(op, sorted_x, owner)

    # Back to the tokens: the row of each (token, slot).
    row = mb.add(x=mb.mul(x=starts, y=np.float32(rows)), y=mb.sub(x=so_far, y=np.float32(1)))
    row = mb.mul(x=routing.one_hot, y=mb.expand_dims(x=row, axes=[1]))  # [T, k, E]
    row = mb.cast(x=mb.reduce_sum(x=row, axes=[2], keep_dims=False), dtype="uint16")
    y = mb.gather(
        x=mb.reshape(x=y, shape=[blocks * rows, d]),
        indices=mb.reshape(x=row, shape=[-1]),
        axis=0,
    )
    return _weighted_sum(mb.reshape(x=y, shape=[tokens, top_k, d]), routing.weights)


def _in_turns(op: Operation, x: Var, owner: Var) -> Var:
    """x [blocks, rows, d] through the experts `owner` [blocks], some blocks at a time."""
    blocks, rows, d = x.shape
    w = op.gate_up_codes.shape[-1]
    most = max(1, UNPACKED_BYTES // (d * 2 * w * 2))
    if most >= blocks:
        return _experts(op, x, owner)
    turns = -(-blocks // most)
    step = -(-blocks // turns)  # turns of equal size have the lowest peak
    parts = []
    for begin in range(0, blocks, step):
        end = min(blocks, begin + step)
        part = mb.slice_by_index(x=x, begin=[begin, 0, 0], end=[end, rows, d])
        parts.append(_experts(op, part, mb.slice_by_index(x=owner, begin=[begin], end=[end])))
    return mb.concat(values=parts, axis=0)


LOWERINGS = (
    Lowering(gathered, lambda op: op.x.shape[0] == 1),
    Lowering(sorted_blocks, lambda op: True),
)
