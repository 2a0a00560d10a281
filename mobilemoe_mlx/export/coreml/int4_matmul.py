"""Multiply by packed INT4 experts inside a MIL program, unpacking with float16 arithmetic."""

from __future__ import annotations

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var

from mobilemoe_mlx.config import GROUP_SIZE


def packed_matmul(x: Var, codes: Var, scale: Var) -> Var:
    """x fp16 [N or 1, rows, in] @ the experts packed in `codes` -> fp16 [N, rows, out].

    codes int8 [N, in, out / 2]: the published bytes, low nibble first along *out*; scale fp16
    [N, in, out / 32]. Even and odd columns are multiplied apart and interleaved afterwards, where
    there are fewest numbers to move.
    """
    count, _, half = codes.shape
    scale = mb.expand_dims(x=scale, axes=[3])
    even, odd = (_scaled(c, scale) for c in _unpack(codes))
    rows = x.shape[1]
    y = mb.stack(values=[mb.matmul(x=x, y=even), mb.matmul(x=x, y=odd)], axis=3)
    return mb.reshape(x=y, shape=[count, rows, 2 * half])


def _unpack(codes: Var) -> tuple[Var, Var]:
    """int8 bytes b -> (low codes, high codes), fp16 of the same shape, exactly.

    As a signed byte b = 16 x high + low' with low' the nibble in 0..15, so high = floor(b / 16);
    the low code is low' or low' - 16, which is b - 16 x floor((b + 8) / 16). All of these are small
    multiples of 1/16, which float16 holds.
    """
    b = mb.cast(x=codes, dtype="fp16")
    sixteenth = mb.mul(x=b, y=np.float16(1 / 16))
    high = mb.floor(x=sixteenth)
    carried = mb.floor(x=mb.add(x=sixteenth, y=np.float16(0.5)))
    low = mb.sub(x=b, y=mb.mul(x=carried, y=np.float16(16)))
    return low, high


def _scaled(codes: Var, scale: Var) -> Var:
    """Every second column of the codes [N, in, out / 2] times its scale [N, in, out / 32, 1]."""
    count, rows, half = codes.shape
    shape = [count, rows, half // (GROUP_SIZE // 2), GROUP_SIZE // 2]
    product = mb.mul(x=mb.reshape(x=codes, shape=shape), y=scale)
    return mb.reshape(x=product, shape=[count, rows, half])
