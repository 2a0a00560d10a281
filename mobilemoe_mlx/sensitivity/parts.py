"""The parts of a model that INT4 rounds, each one tensor: its place, its kind and its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_flatten

from mobilemoe_mlx import int4
from mobilemoe_mlx.accounting.cost import packed_bytes
from mobilemoe_mlx.adapters.config import EMBEDDING, LAYER_MODULES
from mobilemoe_mlx.config import ScaleRule
from mobilemoe_mlx.int4_rounding import stored_type
from mobilemoe_mlx.model import Model

_KINDS = {path: kind for kind, path in LAYER_MODULES.items()}


@dataclass(frozen=True)
class Part:
    """One tensor that INT4 packs."""

    parameter: str  # its name in the model
    kind: str  # "q_proj", "shared_expert.up_proj", "experts.down_proj", ...; "embedding"
    layer: int | None  # None: the embedding
    size: int  # numbers

    @property
    def name(self) -> str:
        """Layer and kind, for people."""
        return self.kind if self.layer is None else f"layer {self.layer}, {self.kind}"

    @property
    def bf16_bytes(self) -> int:
        return 2 * self.size

    @property
    def int4_bytes(self) -> int:
        return packed_bytes(self.size)


def parts_of(model: Model) -> tuple[Part, ...]:
    """The parts of a float model, in its own order."""
    parts = []
    for name, weight in tree_flatten(model.parameters()):
        if stored_type(name) is not None:
            continue
        path = name.removesuffix(".weight")
        if path == EMBEDDING:
            parts.append(Part(name, "embedding", None, weight.size))
        else:
            _, _, layer, inner = path.split(".", 3)
            parts.append(Part(name, _KINDS[inner], int(layer), weight.size))
    return tuple(parts)


class Rounding:
    """Rounds tensors of a float model as their INT4 form will compute them, and back.

    The model's own values are kept, so one that is rounded whole is in memory twice.
    """

    def __init__(self, model: Model, rule: ScaleRule) -> None:
        self.model, self.rule = model, rule
        self._parameters = dict(tree_flatten(model.parameters()))

    def weight(self, part: Part) -> mx.array:
        """The part's own values, whatever is rounded now."""
        return self._parameters[part.parameter]

    def rounded(self, part: Part) -> mx.array:
        """The part as its INT4 form computes it, in the type of its weight."""
        weight = self.weight(part)
        return int4.dequantize(*int4.quantize(weight, self.rule)).astype(weight.dtype)

    @contextmanager
    def of(
        self,
        parts: Iterable[Part],
        chosen: Callable[[Part, mx.array, mx.array], mx.array] | None = None,
    ) -> Iterator[None]:
        """While the block runs the model computes with `parts` rounded, and no others.

        `chosen` may put a part together from its own values and the rounded ones.
        """
        changed = []
        for part in parts:
            new = self.rounded(part)
            if chosen is not None:
                new = chosen(part, self.weight(part), new)
            changed.append((part.parameter, new))
        try:
            self.model.load_weights(changed, strict=False)
            mx.eval(self.model.parameters())
            yield
        finally:
            own = [(name, self._parameters[name]) for name, _ in changed]
            self.model.load_weights(own, strict=False)
