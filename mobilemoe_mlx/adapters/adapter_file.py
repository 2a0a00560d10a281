"""Adapters as folders: adapters.safetensors and adapter_config.json, under mlx-lm's names."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mobilemoe_mlx import files
from mobilemoe_mlx.adapters.adapter_settings import CONFIG, OWN, WEIGHTS, read_settings
from mobilemoe_mlx.adapters.attach import wrap
from mobilemoe_mlx.adapters.base_digest import BaseDigest, base_digest, check_base
from mobilemoe_mlx.adapters.config import EMBEDDING, LAYER_MODULES, AdapterConfig
from mobilemoe_mlx.adapters.training_record import TrainingRecord
from mobilemoe_mlx.all_or_none import whole_folder
from mobilemoe_mlx.checkpoint.layouts import parameter_shapes
from mobilemoe_mlx.checkpoint.tensor_file import (
    DamagedFile,
    Tensor,
    from_array,
    read_header,
    write_file,
)
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model

_PARTS = ("lora_a", "lora_b", "m")
_TOO_LARGE = 1e30  # for an update: no weight is near it, and bfloat16 ends at 3e38


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, read: everything about it fits together."""

    folder: Path
    kind: str  # "lora" or "dora"
    scale: float
    base: BaseDigest | None  # None: the folder does not say (mlx-lm's own adapters)
    config: AdapterConfig | None  # None: as above
    tensors: dict[str, dict[str, Tensor]]  # module path -> part ("lora_a", "lora_b", "m") -> tensor
    biases: dict[str, Tensor]  # name -> selection biases that training has moved, whole

    @property
    def through_int4(self) -> bool:
        """Whether it was trained through the rounding of base + update."""
        return self.config is not None and self.config.through_int4

    def check_fits(self, args: ModelArgs) -> None:
        """Raise UserError, naming a tensor, unless the shapes are those of a model of `args`."""
        shapes = parameter_shapes(args)
        for name, tensor in self.biases.items():
            if tensor.shape != shapes.get(name):
                raise UserError(
                    f"The adapter {self.folder} is for another model: this one has no {name} of "
                    f"the shape {list(tensor.shape)}."
                )
        for path, parts in self.tensors.items():
            shape = shapes.get(f"{path}.weight")
            if shape is None:
                raise UserError(
                    f"The adapter {self.folder} is for another model: this one has no {path}."
                )
            for part, tensor in parts.items():
                expected = part_shape(path, part, shape, rank(parts))
                if tensor.shape != expected:
                    raise UserError(
                        f"The adapter {self.folder} is for another model: {path}.{part} has the "
                        f"shape {list(tensor.shape)}, and this model needs {list(expected)}."
                    )

    def read(self, path: str, weight: float) -> dict[str, mx.array]:
        """The tensors of the module at `path`, float32; its update is weight x scale x a @ b.

        Raises UserError unless they are finite, and so small that what they are added to stays so.
        """
        parts = {part: t.read().astype(mx.float32) for part, t in self.tensors[path].items()}
        most = {part: mx.abs(array).max().item() for part, array in parts.items()}
        update = most["lora_a"] * most["lora_b"] * rank(self.tensors[path]) * self.scale
        self._check_size(path, max([update, *most.values()], key=_or_infinite), weight)
        return parts

    def read_bias(self, name: str, weight: float) -> mx.array:
        """The selection biases `name` as trained, float32; raises UserError as `read`."""
        bias = self.biases[name].read().astype(mx.float32)
        self._check_size(name, mx.abs(bias).max().item(), weight)
        return bias

    def _check_size(self, name: str, most: float, weight: float) -> None:
        """The one check of an adapter's numbers. `most`: an upper bound of their magnitudes."""
        if most < _TOO_LARGE and max(most, 1.0) * abs(weight) < _TOO_LARGE:
            return
        if most < _TOO_LARGE:
            raise UserError(
                f"The adapter {self.folder} with the weight {weight:g}: what '{name}' adds is not "
                "finite: lower the weight."
            )
        raise UserError(
            f"{self.folder / WEIGHTS}: '{name}' has values that are not finite, or as good as that "
            f"(the scale is {self.scale:g}): its training diverged, or the file is damaged."
        )


def _or_infinite(number: float) -> float:
    return math.inf if math.isnan(number) else number


def save_adapter(
    folder: str | Path,
    parameters: dict[str, Any],
    config: AdapterConfig,
    base: BaseDigest,
    *,
    num_layers: int,
    training: TrainingRecord | None = None,
    overwrite: bool = False,
) -> None:
    """Write the adapter of a model whole, or not at all.

    `parameters`: `model.trainable_parameters()` after `attach`, and selection biases
    (`expert_bias`) if training has moved them; `num_layers` of the model; `training`: what the
    folder shall tell of the run. Raises
    UserError when the folder exists and is not an adapter's (or is and `overwrite` is not given),
    or cannot be written; it is then as it was.
    """
    target = files.resolved(folder)
    _check_target(target, overwrite)
    tensors = {name: from_array(array) for name, array in tree_flatten(parameters)}
    content = config.to_dict(num_layers)
    content["model"] = base.name
    content[OWN] |= {"base": dataclasses.asdict(base)}
    if training is not None:
        content[OWN] |= {"training": dataclasses.asdict(training)}
    with whole_folder(target) as new:
        write_file(new / WEIGHTS, tensors, {"format": "mlx"})
        files.write_json(new / CONFIG, content)


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder, ours or one that mlx_lm.lora made; its tensors stay in the file.

    Raises UserError, in one sentence, for a file that is absent or damaged, an unknown key, and
    tensors that are missing, unknown or of shapes that do not fit each other.
    """
    folder = files.user_path(folder)
    _check_folder(folder)
    settings = read_settings(folder / CONFIG)
    try:
        header = read_header(folder / WEIGHTS)
    except DamagedFile as damage:
        raise UserError(f"{folder} cannot be used: {damage.problems[0]}.") from None
    tensors: dict[str, dict[str, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    for name, tensor in header.tensors.items():
        path, _, part = name.rpartition(".")
        is_bias = re.fullmatch(r"model\.layers\.\d+\.feed_forward\.expert_bias", name)
        if not is_bias and (part not in _PARTS or not _is_module(path)):
            raise UserError(f"{folder / WEIGHTS} has '{name}', which is no adapter's tensor.")
        if tensor.dtype not in ("F32", "BF16", "F16"):
            raise UserError(f"{folder / WEIGHTS}: '{name}' has the dtype {tensor.dtype}.")
        if is_bias:
            biases[name] = tensor
            continue
        tensors.setdefault(path, {})[part] = tensor
    adapter = Adapter(
        folder, settings.kind, settings.scale, settings.base, settings.config, tensors, biases
    )
    _check_whole(adapter, settings.rank)
    return adapter


def adapter_of(parameters: dict[str, Any], config: AdapterConfig) -> Adapter:
    """The adapter that `save_adapter` would write of a model's `parameters`, without a file."""
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, array in tree_flatten(parameters):
        path, _, part = name.rpartition(".")
        if part in _PARTS:
            tensors.setdefault(path, {})[part] = from_array(array)
    return Adapter(Path(), config.kind, config.scale, None, config, tensors, {})


def _check_folder(folder: Path) -> None:
    """Raise UserError, saying what it is instead, for a folder that is not an adapter's."""
    missing = next((name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()), None)
    if missing is None:
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is no adapter: there is no such folder.")
    if (folder / "adapter" / CONFIG).is_file():
        raise UserError(
            f"{folder} is a fine-tuning run; its adapter is the folder {folder / 'adapter'}."
        )
    if (folder / "model" / "config.json").is_file():
        raise UserError(
            f"{folder} is a run that left a whole model and no adapter: use {folder / 'model'} as "
            "the model, without --adapter."
        )
    if (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is a model and no adapter: use it as the model, without --adapter."
        )
    raise UserError(f"{folder} is no adapter: it has no {missing}.")


def _is_module(path: str) -> bool:
    if path == EMBEDDING:
        return True
    prefix, _, rest = path.partition("model.layers.")
    number, _, inner = rest.partition(".")
    return not prefix and number.isdigit() and inner in LAYER_MODULES.values()


def _check_whole(adapter: Adapter, said_rank: int | None) -> None:
    """Raise UserError for tensors that are missing, or do not fit each other or `said_rank`."""
    where = adapter.folder / WEIGHTS
    if not adapter.tensors:
        raise UserError(f"{where} has no tensors.")
    wanted = {"lora_a", "lora_b"} | ({"m"} if adapter.kind == "dora" else set())
    for path, parts in adapter.tensors.items():
        for part in sorted(wanted ^ set(parts)):
            what = "is missing" if part in wanted else f"is unexpected in a {adapter.kind} adapter"
            raise UserError(f"{where}: '{path}.{part}' {what}.")
        a, b = parts["lora_a"].shape, parts["lora_b"].shape
        if len(a) < 2 or len(a) != len(b) or a[-1] != b[-2] or a[:-2] != b[:-2]:
            raise UserError(
                f"{where}: '{path}' has lora_a {list(a)} and lora_b {list(b)}, which do not fit "
                "each other."
            )
        if said_rank is not None and rank(parts) != said_rank:
            raise UserError(
                f"{where}: '{path}' has the rank {rank(parts)}, and {CONFIG} says {said_rank}."
            )
    if adapter.config is None:
        return
    numbers = [int(p.split(".")[2]) for p in adapter.tensors if p != EMBEDDING]
    try:
        paths = adapter.config.module_paths(max(numbers, default=-1) + 1)
    except UserError:
        raise UserError(
            f"{where}: tensors are missing: {CONFIG} names the layers "
            f"{adapter.config.layers}, and the last with tensors is {max(numbers, default='none')}."
        ) from None
    if missing := [path for path in paths if path not in adapter.tensors]:
        raise UserError(f"{where}: '{missing[0]}.lora_a' is missing.")


def rank(parts: Mapping[str, Tensor]) -> int:
    """The rank of a module's adapter."""
    return parts["lora_a"].shape[-1]


def part_shape(path: str, part: str, weight: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape of an adapter's tensor, of a float weight of the shape `weight` at `path`."""
    if len(weight) == 3 or path == EMBEDDING:  # experts [experts, in, out], and the embedding
        *more, inputs, outputs = weight
    else:
        (outputs, inputs), more = weight, []
    lengths = inputs if path == EMBEDDING else outputs
    shapes = {
        "lora_a": (*more, inputs, rank),
        "lora_b": (*more, rank, outputs),
        "m": (*more, lengths),
    }
    return shapes[part]


def parse_adapter(text: str) -> tuple[Path, float]:
    """ "DIR" or "DIR:WEIGHT" as (folder, weight); a folder with that very name comes first.

    Raises UserError for a weight that is not a finite number.
    """
    path = files.user_path(text)
    head, colon, tail = text.rpartition(":")
    if not colon or path.exists() or "/" in tail:
        return path, 1.0
    try:
        weight = float(tail)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"--adapter {text}: '{tail}' is not a weight: write DIR:0.5.")
    return files.user_path(head), weight


def read_adapters(
    adapters: Sequence[tuple[str | Path, float]], args: ModelArgs, base: BaseDigest
) -> list[tuple[Adapter, float]]:
    """Read adapters with their weights, and check that they fit a checkpoint and one another.

    Raises UserError as `read_adapter`, for those of another base, and for a DoRA adapter that does
    not stand alone with weight 1: its lengths are those of its own base's columns.
    """
    found = [(read_adapter(folder), weight) for folder, weight in adapters]
    for adapter, weight in found:
        check_base(adapter.folder, adapter.base, base)
        adapter.check_fits(args)
        if adapter.kind == "dora" and (len(found) > 1 or weight != 1):
            raise UserError(
                f"The adapter {adapter.folder} is of the kind dora: it goes alone and with weight "
                "1. Fuse it first, and add others to what comes out."
            )
    return found


def load_adapters(model: Model, adapters: Sequence[tuple[str | Path, float]]) -> None:
    """Put adapters, each (folder, weight), on a loaded model, whose layers are then frozen.

    Several on one module are one of the sum of their ranks. The model is in evaluation mode
    afterwards (no dropout). Raises UserError as `read_adapters`. Those trained through INT4 are
    for `load.load_adapted`.
    """
    attach_read(model, read_adapters(adapters, model.args, base_digest(model.source.folder)))


def attach_read(model: Model, found: Sequence[tuple[Adapter, float]]) -> None:
    """The same with adapters that are read and checked already."""
    options: dict[str, dict[str, Any]] = {}
    parameters: list[tuple[str, mx.array]] = []
    for path in dict.fromkeys(path for adapter, _ in found for path in adapter.tensors):
        parts = [(a.read(path, w), a.scale * w) for a, w in found if path in a.tensors]
        joined = {
            "lora_a": mx.concatenate([part["lora_a"] for part, _ in parts], axis=-1),
            "lora_b": mx.concatenate([part["lora_b"] * s for part, s in parts], axis=-2),
        }
        if "m" in parts[0][0]:
            joined["m"] = parts[0][0]["m"]
        options[path] = {"r": joined["lora_a"].shape[-1], "scale": 1.0, "dora": "m" in joined}
        parameters += [(f"{path}.{part}", array) for part, array in joined.items()]
    wrap(model, options)
    model.update(tree_unflatten(parameters))
    moved = {name for adapter, _ in found for name in adapter.biases}
    old = dict(tree_flatten(model.parameters()))
    model.update(tree_unflatten([(name, moved_bias(name, old[name], found)) for name in moved]))
    mx.eval(model.trainable_parameters())
    model.eval()


def moved_bias(name: str, bias: mx.array, adapters: Sequence[tuple[Adapter, float]]) -> mx.array:
    """The selection biases `name`, float32, moved by the weighted moves of all adapters."""
    old = bias.astype(mx.float32)
    new = old
    for adapter, weight in adapters:
        if name in adapter.biases:
            trained = adapter.read_bias(name, weight)
            # Weight 1 is the trained value itself, whatever old - old rounds to.
            new = trained if weight == 1 and new is old else new + weight * (trained - old)
    return new


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / CONFIG).is_file():
        raise UserError(
            f"{target} exists and is not an adapter's folder, so it is not overwritten: choose "
            "another name."
        )
    if not overwrite:
        raise UserError(f"{target} exists: choose another folder, or replace it (--overwrite).")
