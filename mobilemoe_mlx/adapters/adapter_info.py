"""What an adapter is, ours or mlx-lm's, from its configuration and its weights' header."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.adapters.adapter_settings import CONFIG, OWN, WEIGHTS
from mobilemoe_mlx.adapters.training_record import TrainingRecord
from mobilemoe_mlx.checkpoint.tensor_file import DamagedFile, read_header
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tensor_names import is_expert_matrix

_PLACE = re.compile(r"(?:.*\.)?layers\.(\d+)\.(.+)\.(lora_a|lora_b|m)")


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter folder. Bytes are those of the whole weight file."""

    path: Path
    kind: str  # fine_tune_type: "lora", "dora" or "full"
    base: str | None  # the model it was trained on, as the configuration names it
    ranks: tuple[int, ...]  # of all pairs of matrices; usually one number
    scale: float | None  # the product of a pair is multiplied by this
    layers: tuple[int, ...]  # indices, counted from 0
    modules: dict[str, int]  # part of a layer -> layers in which it has an adapter
    embedding: bool  # whether the embedding, and so the head, has one
    # Of ours: the scale rule where it was trained through INT4, and its base's digest.
    through_int4: str | None
    base_weights: str | None
    training: TrainingRecord | None  # of ours, where the folder tells it
    tensors: int
    parameters: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path), "next": self.next_commands()}

    def text(self) -> str:
        """For people: a line for each property."""
        cells = {
            "adapter": f"{self.path.name}, {self.kind}",
            "folder": str(self.path),
            "base model": self.base or "not named",
            "rank": ", ".join(map(str, self.ranks)) or "none",
            "scale": "not given" if self.scale is None else f"{self.scale:g}",
            "layers": _ranges(self.layers) or "none",
        }
        if self.through_int4 is not None:
            cells["trained"] = f"through INT4, with {self.through_int4} scales"
        if self.base_weights is not None:
            cells["base model"] += f", weights {self.base_weights[:16]}..."
        if self.embedding:
            cells["  embed_tokens"] = "which is the head too"
        cells |= {f"  {name}": f"in {count} layers" for name, count in self.modules.items()}
        if (training := self.training) is not None:
            cells |= _training_cells(training)
        cells["parameters"] = f"{self.parameters:,} in {self.tensors:,} tensors"
        cells["weights"] = text_table.size(self.bytes)
        return "\n".join([text_table.labelled(cells), *next_lines(self.next_commands())])

    def next_commands(self) -> list[str]:
        """What to type to use it; a line that is no command begins with "#"."""
        if self.base is None or self.kind not in ("lora", "dora"):
            return []
        base, adapter, fused = self.base, str(self.path), str(self.path.parent / "fused")
        is_text = self.training is not None and self.training.form == "text"
        talk = ["generate", base, "--prompt", "The"] if is_text else ["chat", base]
        use = shlex.join(["mobilemoe", *talk, "--adapter", adapter])
        fuse = ["mobilemoe", "fuse", base, adapter, fused]
        kept = None if self.training is None else self.training.survives_int4
        from mobilemoe_mlx.adapters.survival import LEAST  # slow to import, and few need it

        if kept is None or kept >= LEAST:
            return [use, shlex.join(fuse)]
        return [
            use,
            f"# INT4 would keep {kept:.0%} of this adapter, so a fuse into INT4 is refused: use it "
            "with --adapter as above, train it through INT4 (--method qat-lora), or fuse to BF16:",
            shlex.join([*fuse, "--to", "bf16"]),
        ]


def next_lines(commands: Sequence[str]) -> list[str]:
    """Commands under the heading that every run and description gives them; [] for none."""
    return ["Next:", *(f"  {command}" for command in commands)] if commands else []


def _training_cells(training: TrainingRecord) -> dict[str, str]:
    cells = {"method": training.method, "data": training.data, "steps": f"{training.steps:,}"}
    if training.heldout_before is not None and training.heldout_after is not None:
        cells["held-out loss"] = (
            f"{training.heldout_before:.4f} before, {training.heldout_after:.4f} after"
        )
    if training.test_loss is not None:
        cells["test loss"] = f"{training.test_loss:.4f}"
    if training.survives_int4 is not None:
        cells["fused into INT4"] = f"{training.survives_int4:.0%} of the update would survive"
    return cells


def is_adapter(folder: Path) -> bool:
    """Whether `folder` is an adapter's, whole or not."""
    return (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file()


def describe_adapter(folder: Path) -> AdapterInfo:
    """Describe an adapter folder; raises UserError naming what is missing or damaged in it."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is an adapter without {name}: copy it whole.")
    config = files.read_json(folder / CONFIG)
    if isinstance(config, dict) and OWN in config:
        from mobilemoe_mlx.adapters.adapter_file import read_adapter  # slow to import

        read_adapter(folder)  # raises for all that keeps the adapter from being used
    settings = config.get("lora_parameters") or {} if isinstance(config, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{folder / CONFIG} is not an adapter's configuration of mlx-lm.")
    try:
        tensors = read_header(folder / WEIGHTS).tensors
    except DamagedFile as damage:
        raise UserError(f"{folder} cannot be used: {damage.problems[0]}.") from None
    places = {name: match for name in tensors if (match := _PLACE.fullmatch(name))}
    # lora_a is [in, rank] and lora_b [rank, out]; of experts of mlx-lm's own models [expert, rank,
    # in] and [expert, out, rank], and of ours [expert, in, rank] and [expert, rank, out].
    ranks = set()
    for name in tensors:
        module, _, part = name.rpartition(".")
        shape = tensors[name].shape
        if part == "lora_a" and len(shape) in (2, 3):
            ranks.add(shape[-1] if is_expert_matrix(module) else shape[1])
    modules = Counter(module for _, module in {(m[1], m[2]) for m in places.values()})
    scale = settings.get("scale")
    base = config.get("model")
    own = config.get(OWN, {})
    weights = own.get("base", {}).get("weights")
    return AdapterInfo(
        path=folder,
        kind=str(config.get("fine_tune_type", "lora")),
        base=base if isinstance(base, str) else None,
        ranks=tuple(sorted(ranks)),
        scale=float(scale) if isinstance(scale, int | float) else None,
        layers=tuple(sorted({int(match[1]) for match in places.values()})),
        modules=dict(sorted(modules.items())),
        embedding="model.embed_tokens.lora_a" in tensors,
        through_int4=str(own.get("scale_rule")) if own.get("through_int4") else None,
        base_weights=weights,
        training=TrainingRecord(**own["training"]) if "training" in own else None,
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        bytes=(folder / WEIGHTS).stat().st_size,
    )


def _ranges(numbers: tuple[int, ...]) -> str:
    """ "0 to 3, 7" for (0, 1, 2, 3, 7)."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)
