"""Open a checkpoint folder: everything wrong with it is found before any of it is used.

Only config.json, the index and the headers of *.safetensors are read. Pickles never are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mobilemoe_mlx import end_tokens, files, int4
from mobilemoe_mlx.checkpoint.foreign import foreign_files
from mobilemoe_mlx.checkpoint.layouts import (
    Expected,
    Layout,
    expected_tensors,
    layout_of,
    module_name,
    published_name,
)
from mobilemoe_mlx.checkpoint.tensor_file import DamagedFile, Tensor, read_header
from mobilemoe_mlx.config import ModelArgs, read_config
from mobilemoe_mlx.downloads import links_to_nothing, unfinished
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.files import visible

INDEX_FILE = "model.safetensors.index.json"

_LAYER = re.compile(r"(?<=model\.layers\.)\d+(?=\.)")


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose config.json and tensors fit together; no tensor has been read."""

    folder: Path
    config: dict[str, Any]  # config.json as it is
    args: ModelArgs
    layout: Layout
    tensors: dict[str, Tensor]  # under the names they are stored as
    metadata: dict[str, str]  # of the safetensors files

    def end_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a generation, by all files of the folder (`end_tokens`)."""
        return end_tokens.of_folder(self.folder, self.args.eos_token_id, self.args.vocab_size)


def check(folder: str | Path) -> list[str]:
    """All that is wrong with a checkpoint's headers and config, one sentence each; [] when nothing.

    Finds: truncated or damaged files, missing and unexpected tensors, wrong shapes and dtypes, an
    index that disagrees with the files, a config that contradicts the tensors.
    """
    return _inspect(files.user_path(folder))[1]


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """The checkpoint in `folder`; raises UserError listing everything that `check` finds."""
    folder = files.user_path(folder)
    if folder.suffix == ".mlpackage":
        raise UserError(
            f"{folder} is a Core ML package, which `mobilemoe verify` and `mobilemoe compare` "
            "read: give the checkpoint that it was made from."
        )
    checkpoint, problems = _inspect(folder)
    if problems or checkpoint is None:
        if (why := unfinished(folder)) is not None:
            problems.insert(0, why)
        raise _error(folder, problems)
    return checkpoint


def check_scales(checkpoint: Checkpoint) -> None:
    """Read every scale of an INT4 checkpoint; raises UserError listing the tensors with bad ones.

    Bad: NaN, infinite, or too large for -8 x scale in float16; in MLX's form also biases that are
    not -8 x scale, which is quantisation of another kind than MobileMoE's.
    """
    problems = []
    for name, tensor in checkpoint.tensors.items():
        if not name.endswith(("scale", ".scales")):
            continue
        scale = tensor.read()
        try:
            int4.check_scales(name, scale)
        except UserError as error:
            problems.append(str(error).rstrip("."))
            continue
        if name.endswith(".scales"):
            biases_name = f"{name.removesuffix('.scales')}.biases"
            biases = checkpoint.tensors[biases_name].read()
            if not mx.array_equal(biases, int4.affine_biases(scale)).item():
                problems.append(
                    f"{biases_name}: not -8 x the scales, so these are not MobileMoE's symmetric "
                    "codes. Convert the published checkpoint with `mobilemoe convert --to mlx`"
                )
    if problems:
        raise _error(checkpoint.folder, problems)


def _error(folder: Path, problems: list[str]) -> UserError:
    folded = fold_layers(problems)
    return UserError(f"{folder} cannot be used:" + "".join(f"\n  - {line}" for line in folded))


def fold_layers(problems: Iterable[str]) -> list[str]:
    """Put sentences that differ only in their layer number together, as `model.layers.{0,1,2}.`"""
    layers: dict[str, list[str]] = {}
    for problem in problems:
        found = _LAYER.findall(problem)
        pattern = _LAYER.sub("\0", problem) if len(set(found)) == 1 else problem
        layers.setdefault(pattern, []).extend(found[:1])
    return [
        pattern.replace("\0", which[0] if len(which) == 1 else "{" + ",".join(which) + "}")
        if "\0" in pattern
        else pattern
        for pattern, which in layers.items()
    ]


@dataclass
class _Found:
    """What reading the headers of a folder gave."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)  # tensors of absent or damaged files
    incomplete: bool = False  # a file could not be read and nothing says what was in it


def _inspect(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    if not folder.is_dir():
        return None, [f"there is no folder {folder}"]
    problems: list[str] = []
    config: dict[str, Any] = {}
    args = None
    try:
        config = read_config(folder)
        args = ModelArgs.from_dict(config)
    except UserError as error:
        problems.append(str(error).rstrip("."))
    found = _read_headers(folder)
    problems += found.problems
    if folder.is_dir() and (links := links_to_nothing(folder)) is not None:
        problems.append(links)
    if args is None or not found.tensors:
        return None, problems
    layout = layout_of(found.tensors)
    problems += _config_problems(config, args, layout, found)
    problems += _tensor_problems(args, layout, found)
    args = dataclasses.replace(args, quantized=layout is not Layout.FLOAT)
    return Checkpoint(folder, config, args, layout, found.tensors, found.metadata), problems


def _read_headers(folder: Path) -> _Found:
    found = _Found()
    weight_map = _read_index(folder, found)
    if weight_map is None:
        names = sorted(p.name for p in visible(folder.glob("*.safetensors")))
    else:
        names = sorted(set(weight_map.values()))
        for path in sorted(visible(folder.glob("model*.safetensors"))):
            if path.name not in names:
                found.problems.append(f"{INDEX_FILE} does not name {path.name}, which is there too")
    if not names and not found.problems:
        found.problems.append(_nothing_to_read(folder))
    where: dict[str, str] = {}
    for file in names:
        mapped = {t for t, f in weight_map.items() if f == file} if weight_map else set()
        path = folder / file
        if weight_map is None and not path.is_file():
            found.problems.append(f"{file} is not a file")
            found.incomplete = True
            continue
        if Path(file).name != file or not path.is_file():
            found.problems.append(f"{INDEX_FILE} names {file}, which is not in the folder")
            found.unreadable |= mapped
            continue
        try:
            header = read_header(path)
        except DamagedFile as damage:
            found.problems += damage.problems
            found.unreadable |= mapped
            found.incomplete |= weight_map is None
            continue
        found.metadata |= header.metadata
        for name, tensor in header.tensors.items():
            if name in where:
                found.problems.append(f"'{name}' is in {where[name]} and again in {file}")
            elif weight_map is not None and weight_map.get(name) != file:
                says = f"says {weight_map[name]}" if name in weight_map else "does not name it"
                found.problems.append(f"'{name}' is in {file}, but {INDEX_FILE} {says}")
            where[name] = file
            found.tensors[name] = tensor
        for name in sorted(mapped - set(header.tensors)):
            found.problems.append(f"{INDEX_FILE} says '{name}' is in {file}, but it is not")
            found.unreadable.add(name)
    return found


def _read_index(folder: Path, found: _Found) -> dict[str, str] | None:
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    try:
        weight_map = files.read_json(path)["weight_map"]
        if not all(isinstance(v, str) for v in weight_map.values()):
            raise TypeError
    except UserError as error:
        found.problems.append(str(error).rstrip("."))
        found.incomplete = True
        return {}
    except (KeyError, TypeError, AttributeError):
        found.problems.append(f"{INDEX_FILE} is not JSON with a table 'weight_map' of file names")
        found.incomplete = True
        return {}
    return weight_map


def _nothing_to_read(folder: Path) -> str:
    others = foreign_files(folder)
    return "the folder has no *.safetensors" + ("" if others is None else f", only {others}")


# Field of config.json -> its value, the tensor and the axis (never a packed one) it is the size of.
_SIZES: dict[str, tuple[Callable[[ModelArgs], int], str, int]] = {
    "vocab_size": (lambda a: a.vocab_size, r"model\.embed_tokens\.q?weight", 0),
    "hidden_size": (lambda a: a.hidden_size, r"model\.norm\.weight", 0),
    "num_local_experts": (lambda a: a.num_local_experts, r".*\.expert_bias", 0),
    "intermediate_size": (
        lambda a: a.intermediate_size,
        r".*\.experts\.down_(proj|proj\.weight|qweight)",
        1,
    ),
    "intermediate_size_mlp": (
        lambda a: a.intermediate_size_mlp,
        r".*\.shared_expert\.gate_proj\.q?weight",
        0,
    ),
    "num_attention_heads x head_dim": (
        lambda a: a.query_dim,
        r".*\.q_proj\.q?weight",
        0,
    ),
    "num_key_value_heads x head_dim": (lambda a: a.key_value_dim, r".*\.k_proj\.q?weight", 0),
}


def _config_problems(
    config: dict[str, Any], args: ModelArgs, layout: Layout, found: _Found
) -> list[str]:
    problems = []
    block = config.get("quantization")
    if args.quantized and layout is Layout.FLOAT:
        problems.append(
            "config.json has a quantization block, but the tensors are not quantised (no qweight): "
            "the config or the tensors belong to another checkpoint"
        )
    elif not args.quantized and layout is not Layout.FLOAT:
        problems.append(
            f"the tensors are {layout.value}, but config.json has no quantization block: "
            "the config or the tensors belong to another checkpoint"
        )
    elif args.quantized and ("format" in (block or {})) is not (layout is Layout.INT4):
        problems.append(
            f"the tensors are {layout.value}, but config.json's quantization block describes the "
            "other INT4 form"
        )
    for name, (value, pattern, axis) in _SIZES.items():
        for tensor_name, tensor in found.tensors.items():
            if re.fullmatch(pattern, tensor_name):
                if axis < len(tensor.shape) and tensor.shape[axis] != value(args):
                    problems.append(
                        f"config.json says {name} {value(args)}, but {tensor_name} has "
                        f"{tensor.shape[axis]}"
                    )
                break
    return problems


def _tensor_problems(args: ModelArgs, layout: Layout, found: _Found) -> list[str]:
    problems: list[str] = []
    expected = expected_tensors(args, layout)
    # In MLX's form float experts are named with `.weight`, as in `Model`; so may published ones be.
    stored = {n: n for n in found.tensors}
    if layout is Layout.FLOAT:
        for name in found.tensors:
            canonical = published_name(name)
            if canonical != name and canonical in found.tensors:
                problems.append(f"'{canonical}' is there twice, also as '{name}'")
            stored[name] = canonical
    present = set(stored.values())
    unreadable = {published_name(n) for n in found.unreadable} | found.unreadable
    missing = [n for n in expected if n not in present and n not in unreadable]
    unexpected = [n for n in found.tensors if stored[n] not in expected]
    if not found.incomplete:
        problems += [
            f"'{name}' is missing{_near(name, unexpected, 'there is')}" for name in missing
        ]
    problems += [
        f"'{name}' is unexpected{_near(name, missing, 'did you mean')}" for name in unexpected
    ]
    for name, tensor in found.tensors.items():
        if stored[name] in expected:
            problems += _mismatch(name, tensor, expected[stored[name]])
    return problems


def _mismatch(name: str, tensor: Tensor, expected: Expected) -> list[str]:
    problems = []
    if tensor.shape != expected.shape:
        problems.append(
            f"'{name}' has the shape {list(tensor.shape)}, expected {list(expected.shape)}"
        )
    if tensor.dtype not in expected.dtypes:
        problems.append(
            f"'{name}' has the dtype {tensor.dtype}, expected {' or '.join(expected.dtypes)}"
        )
    return problems


def _near(name: str, candidates: list[str], words: str) -> str:
    # Names of other layers cannot be what was meant, and comparing with all of them is slow.
    layer = _LAYER.findall(name)
    same = [c for c in candidates if _LAYER.findall(c) == layer][:64]
    return did_you_mean(module_name(name), same).replace("did you mean", words)
