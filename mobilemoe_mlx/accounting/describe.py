"""What a preset, a checkpoint or another family's config.json describes, and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.accounting.architecture import Architecture, mobilemoe
from mobilemoe_mlx.accounting.cost import Accounting, cost
from mobilemoe_mlx.accounting.families import read_architecture
from mobilemoe_mlx.accounting.published import published_models
from mobilemoe_mlx.checkpoint import hub
from mobilemoe_mlx.checkpoint.layouts import layout_of
from mobilemoe_mlx.checkpoint.tensor_file import read_header
from mobilemoe_mlx.config import MODEL_TYPE, PRESETS, ModelArgs, read_config
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.files import visible


@dataclass(frozen=True)
class Files:
    """The weights that a checkpoint folder holds."""

    layout: str  # "BF16", "packed INT4" or "INT4 in MLX's form"
    count: int
    bytes: int  # of whole files, headers included


@dataclass(frozen=True)
class Described:
    """A preset, checkpoint or config.json, and what it costs."""

    name: str
    config: dict[str, Any]  # as config.json has it
    architecture: Architecture
    accounting: Accounting
    files: Files | None  # None: not a folder, or one without weights

    def to_dict(self) -> dict[str, Any]:
        """Name, sizes, costs and files as plain JSON."""
        return {
            "name": self.name,
            "config": self.config,
            **dataclasses.asdict(self.accounting),
            "files": dataclasses.asdict(self.files) if self.files else None,
        }


def describe(name: str, context: int | None = None) -> Described:
    """Account for a preset, a published rival, a config.json, a folder, or a Hugging Face repo.

    A preset's name comes first, a rival's next (`published_models`); `./S` is the folder. Of a
    repository, its config.json alone is had. Raises UserError for a name that is none of these, a
    config.json that cannot be had or read, or a context as in `cost`.
    """
    path = files.user_path(name)
    weights = None
    if name in PRESETS:
        config = PRESETS[name].to_dict()
    elif name in published_models():
        return _published(name, context)
    elif path.is_dir():
        config, weights = read_config(path), _files(path)
    elif path.suffix == ".json" and path.is_file():
        config = read_config(path.parent, path.name)
    elif name.count("/") == 1 and path.suffix != ".json" and not path.parent.is_dir():
        config = read_config(hub.resolve(name, config_only=True))
    else:
        known = [*PRESETS, *published_models()]
        raise UserError(
            f"There is no preset and no folder or file {name}{did_you_mean(name, known)}. "
            f"Presets: {', '.join(PRESETS)}; rivals: {', '.join(published_models())}."
        )
    if config.get("model_type") == MODEL_TYPE or "model_type" not in config:
        args = ModelArgs.from_dict(config)
        model, config = mobilemoe(args), args.to_dict()
    else:
        model = read_architecture(config)
    is_ours = config.get("model_type") == MODEL_TYPE
    return Described(name, config, model, cost(model, context, as_the_paper=is_ours), weights)


def _published(name: str, context: int | None) -> Described:
    each = published_models()[name]
    ours = each.preset is not None
    config = PRESETS[each.preset].to_dict() if each.preset is not None else each.config or {}
    model = each.architecture
    return Described(name, config, model, cost(model, context, as_the_paper=ours), None)


def describe_presets(context: int | None = None) -> list[Described]:
    """All presets, each at `context` or, where it takes less, at the most it takes."""
    return [
        describe(name, None if context is None else min(context, args.max_position_embeddings))
        for name, args in PRESETS.items()
    ]


def _files(folder: Path) -> Files | None:
    paths = sorted(visible(folder.glob("*.safetensors")))
    names = {name for path in paths for name in read_header(path).tensors}
    if not names:
        return None
    return Files(layout_of(names).value, len(paths), sum(path.stat().st_size for path in paths))


def table(described: Sequence[Described]) -> str:
    """A column for each model, for people; one at least."""
    cells = [_cells(each) for each in described]
    return text_table.columns([[label, *(c[label] for c in cells)] for label in cells[0]])


def _cells(d: Described) -> dict[str, str]:
    """Label -> text, one column of the table; the labels are the same for every model."""
    model, a = d.architecture, d.accounting
    first = model.layers[0]
    cells = {
        "": d.name,
        "layers": f"{len(model.layers)}",
        "hidden size": f"{model.hidden_size}",
        "attention heads / key-value heads": (f"{model.attention_heads} / {model.key_value_heads}"),
        "routed experts / per token": (
            f"{first.experts} / {first.experts_per_token}" if first.experts else "dense"
        ),
        "vocabulary": f"{model.vocab_size:,}",
        "active parameters per token": text_table.count(a.active_parameters),
        "total parameters": text_table.count(a.total_parameters),
        "BF16 weights": text_table.size(a.bf16_bytes),
        "INT4 weights (as in MobileMoE's files)": text_table.size(a.int4_bytes),
        "INT4 weights (as the paper counts)": (
            "-" if a.int4_bytes_paper is None else text_table.size(a.int4_bytes_paper)
        ),
        "KV cache per token, 16-bit": text_table.size(a.kv_bytes_per_token["bfloat16"]),
        "KV cache per token, float32": text_table.size(a.kv_bytes_per_token["float32"]),
        "context": f"{a.context:,}",
        "KV cache at this context, 16-bit": text_table.size(a.kv_bytes["bfloat16"]),
        "FLOPs per token at this context": text_table.count(a.flops_per_token),
    }
    if d.files:
        plural = "" if d.files.count == 1 else "s"
        cells["weights here"] = (
            f"{d.files.layout}, {d.files.count} file{plural}, {text_table.size(d.files.bytes)}"
        )
    return cells
