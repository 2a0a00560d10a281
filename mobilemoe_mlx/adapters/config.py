"""What an adapter is made of: its kind, rank and scale, and the modules that have one."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mobilemoe_mlx.config import ScaleRule
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.tables import NOT_EMPTY, Bounds, Count, Positive

EMBEDDING = "model.embed_tokens"

# A module's name in a configuration -> its path in a layer.
LAYER_MODULES = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "shared_expert.gate_proj": "feed_forward.shared_expert.gate_proj",
    "shared_expert.up_proj": "feed_forward.shared_expert.up_proj",
    "shared_expert.down_proj": "feed_forward.shared_expert.down_proj",
    "experts.gate_up_proj": "feed_forward.experts.gate_up_proj",
    "experts.down_proj": "feed_forward.experts.down_proj",
    "router": "feed_forward.router",
}
GROUPS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "shared_expert": tuple(name for name in LAYER_MODULES if name.startswith("shared_expert.")),
    "experts": tuple(name for name in LAYER_MODULES if name.startswith("experts.")),
}
MODULES = (*GROUPS, "router", "embedding", *(n for n in LAYER_MODULES if n != "router"))

# Our own part of adapter_config.json, beside mlx-lm's.
_OWN = "mobilemoe"


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter's settings; raises UserError for values that do not go together."""

    kind: Literal["lora", "dora"] = "lora"
    rank: Count = 8
    alpha: Positive = 16.0  # the update is multiplied by alpha / rank; see `scale`
    dropout: Annotated[float, Bounds(least=0, below=1)] = 0.0  # of the adapters' input
    modules: Annotated[tuple[str, ...], NOT_EMPTY] = ("attention", "shared_expert", "experts")
    layers: str = ""  # numbers and ranges, like "0-3, 7"; empty: all
    rslora: bool = False  # alpha / sqrt(rank) instead (arXiv 2312.03732)
    through_int4: bool = False  # compute the INT4 rounding of base + update
    scale_rule: ScaleRule = "unclipped"  # of that rounding

    def __post_init__(self) -> None:
        for name in self.modules:
            if name not in MODULES:
                raise UserError(
                    f"adapters have no module '{name}'{did_you_mean(name, MODULES)}; known: "
                    f"{', '.join(MODULES)}."
                )
        if self.through_int4 and self.kind != "lora":
            raise UserError("through_int4 is for adapters of the kind lora, not dora.")
        if self.through_int4 and self.dropout:
            raise UserError(
                "dropout must be 0 with through_int4: what is rounded is the sum of both matrices."
            )

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def layer_numbers(self, num_layers: int) -> tuple[int, ...]:
        """The layers that have adapters; raises UserError for those beyond `num_layers`."""
        if not self.layers.strip():
            return tuple(range(num_layers))
        found: set[int] = set()
        for part in self.layers.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                raise UserError(
                    f"layers is '{self.layers}': give numbers and ranges, like '0-3, 7'."
                )
            if last >= num_layers:
                raise UserError(
                    f"layers is '{self.layers}', but the model has the layers 0 to "
                    f"{num_layers - 1}."
                )
            found.update(range(first, last + 1))
        return tuple(sorted(found))

    def module_paths(self, num_layers: int) -> tuple[str, ...]:
        """The paths in `Model` of the modules that have an adapter, in the model's order."""
        names = [n for each in self.modules for n in GROUPS.get(each, (each,))]
        inner = [LAYER_MODULES[name] for name in LAYER_MODULES if name in names]
        numbers = self.layer_numbers(num_layers) if inner else ()
        paths = [f"model.layers.{n}.{path}" for n in numbers for path in inner]
        return (*((EMBEDDING,) if "embedding" in names else ()), *paths)

    def to_dict(self, num_layers: int) -> dict[str, Any]:
        """adapter_config.json's content: mlx-lm's keys, and ours under "mobilemoe"."""
        paths = self.module_paths(num_layers)
        numbers = self.layer_numbers(num_layers)
        last = numbers == tuple(range(num_layers - len(numbers), num_layers))
        keys = paths
        if last:  # mlx-lm's own way: names in a layer, for so many of the last layers
            inner = [p.partition(f"model.layers.{numbers[-1]}.")[2] for p in paths]
            keys = tuple(p for p, i in zip(paths, inner, strict=True) if p == EMBEDDING) + tuple(
                i for i in inner if i
            )
        own = dataclasses.asdict(self) | {"modules": list(self.modules)}
        return {
            "fine_tune_type": self.kind,
            "num_layers": len(numbers),
            "lora_parameters": {
                "rank": self.rank,
                "scale": self.scale,
                "dropout": self.dropout,
                "keys": list(keys),
            },
            _OWN: own,
        }
