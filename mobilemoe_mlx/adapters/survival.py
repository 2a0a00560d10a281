"""How much of an adapter is left when base + update is rounded to INT4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mobilemoe_mlx import int4
from mobilemoe_mlx.adapters.config import EMBEDDING, GROUPS, LAYER_MODULES
from mobilemoe_mlx.adapters.fused import Weighted, float_tensors, has_update, with_update
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.config import ScaleRule
from mobilemoe_mlx.int4_rounding import stored_type

# Below this part of its update an adapter counts as lost: between those that kept a quarter and
# nine tenths of their gain in held-out loss (docs/adapters.md, "Fuse").
LEAST = 0.5


@dataclass(frozen=True)
class Survival:
    """What rounding leaves of the updates of one kind of module, or of all."""

    kind: str  # "attention", "shared_expert", "experts", "embedding"; "all"
    modules: int
    # <change, update> / <update, update>, where the change is that of the INT4 matrix: 1 when all
    # of the update is there, 0 when nothing is; what rounding adds in other directions is not in it
    survives: float
    error: float  # |change - update| / |update|


def survival(
    checkpoint: Checkpoint, adapters: Sequence[Weighted], rule: ScaleRule
) -> tuple[Survival, ...]:
    """Of each kind of module that INT4 rounds, and of all together, last; () where there is none.

    The change is measured from the INT4 base, or from the rounded one of a BF16 base. Computes one
    matrix at a time.
    """
    sums: dict[str, list[float]] = {}
    for name, tensor in float_tensors(checkpoint).items():
        if stored_type(name) is not None or not has_update(name, adapters):
            continue
        path = name.removesuffix(".weight")
        parts = [0.0, 0.0, 0.0]
        base = tensor.read()
        new = with_update(path, base, adapters)
        for before, after in zip(_blocks(base), _blocks(new), strict=True):
            update = after - before
            old = before if checkpoint.layout is not Layout.FLOAT else _rounded(before, rule)
            change = _rounded(after, rule) - old
            for i, product in enumerate(
                (change * update, update * update, mx.square(change - update))
            ):
                parts[i] += product.sum().item()
        for kind in (_kind(path), "all"):
            counted = sums.setdefault(kind, [0.0, 0.0, 0.0, 0.0])
            sums[kind] = [a + b for a, b in zip(counted, (1, *parts), strict=True)]
    if "all" in sums:
        sums["all"] = sums.pop("all")
    return tuple(
        Survival(
            kind,
            int(count),
            dot / square if square else 1.0,
            (error / square) ** 0.5 if square else 0.0,
        )
        for kind, (count, dot, square, error) in sums.items()
    )


def _rounded(weight: mx.array, rule: ScaleRule) -> mx.array:
    return int4.dequantize(*int4.quantize(weight, rule))


_BLOCK_ELEMENTS = 4_000_000  # rows compared together: about 150 MB of float32 intermediates


def _blocks(weight: mx.array) -> Iterator[mx.array]:
    step = max(1, _BLOCK_ELEMENTS // weight[0].size)
    for start in range(0, weight.shape[0], step):
        yield weight[start : start + step]


def _kind(path: str) -> str:
    if path == EMBEDDING:
        return "embedding"
    inner = path.split(".", 3)[3]
    name = next(name for name, place in LAYER_MODULES.items() if place == inner)
    return next(group for group, names in GROUPS.items() if name in names)
