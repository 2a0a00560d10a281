"""Which engine computes a side of a comparison: as asked for, or by the kind of the folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mobilemoe_mlx.compare.side import Side
from mobilemoe_mlx.cpu_kernel.structures import PRECISIONS
from mobilemoe_mlx.engines.engine import Adapters
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.numerics.tolerance import COMPARE_LIMITS
from mobilemoe_mlx.verify.open_export import is_onnx

# Engine -> the precisions that may be asked of it.
ENGINES = {
    "mlx": tuple(COMPARE_LIMITS),
    "torch": tuple(COMPARE_LIMITS),
    "cpu": tuple(PRECISIONS),
    "onnx": tuple(PRECISIONS),
    "coreml": ("declared", "float32"),
}

_TYPED = ("mlx", "torch")  # those whose precisions are floating-point types

# What a path is -> the engines that compute it, the default first.
_OF_KIND = {
    "a checkpoint": ("mlx", "torch", "cpu"),
    "an ONNX export": ("onnx",),
    "a Core ML package": ("coreml",),
}
_EXPORT_FIRST = {
    "onnx": "`mobilemoe export onnx`",
    "coreml": "`mobilemoe export coreml`",
}


def open_side(
    path: Path, engine: str | None, types: Mapping[str, str], adapters: Adapters = ()
) -> Side:
    """A checkpoint folder, ONNX folder or Core ML package in an engine.

    `engine`: "NAME" or "NAME:PRECISION" of ENGINES; None: the default of what `path` is. `types`:
    the precision of "mlx" and of "torch" where none is named. Raises UserError for an engine that
    is not known, does not compute this, or is not installed, and for all that is wrong with `path`.
    """
    kind = kind_of(path)
    name, precision = _asked(path, engine)
    if name not in _OF_KIND[kind]:
        first = _EXPORT_FIRST.get(name) if kind == "a checkpoint" else None
        raise UserError(
            f"{path} is {kind}, which the engine '{name}' does not compute: choose "
            f"{', '.join(_OF_KIND[kind])}"
            + (f", or export it first, by {first}." if first else ".")
        )
    if name == "onnx":
        from mobilemoe_mlx.compare.export_side import onnx_side

        return onnx_side(path, precision, adapters)
    if name == "coreml":
        from mobilemoe_mlx.compare.export_side import coreml_side

        return coreml_side(path, precision, adapters)
    if name == "cpu":
        from mobilemoe_mlx.compare.cpu_side import cpu_side

        return cpu_side(path, precision or "int16", adapters)
    dtype = precision or types[name]
    if name == "torch":
        from mobilemoe_mlx.compare.torch_side import torch_side

        return torch_side(path, dtype, adapters)
    from mobilemoe_mlx.compare.mlx_side import mlx_side

    return mlx_side(path, dtype, adapters)


def reads_type(path: Path, engine: str | None) -> str | None:
    """The engine whose entry of `types` decides the precision that `open_side` computes in.

    None where `engine` names one itself, or has precisions that are no floating-point types.
    """
    name, precision = _asked(path, engine)
    return name if precision is None and name in _TYPED else None


def _asked(path: Path, engine: str | None) -> tuple[str, str | None]:
    return _parse(engine or _OF_KIND[kind_of(path)][0])


def kind_of(path: Path) -> str:
    """What `path` is, by the files in it: a key of _OF_KIND."""
    if is_onnx(path):
        return "an ONNX export"
    if path.suffix == ".mlpackage" or (path / "Manifest.json").is_file():
        return "a Core ML package"
    return "a checkpoint"


def _parse(text: str) -> tuple[str, str | None]:
    """ "cpu:int8" as its two parts; raises UserError for those that are not known."""
    name, colon, precision = text.partition(":")
    if name not in ENGINES:
        raise UserError(
            f"There is no engine '{name}'{did_you_mean(name, ENGINES)}. "
            f"Engines to compare: {', '.join(ENGINES)}."
        )
    if colon and precision not in ENGINES[name]:
        raise UserError(
            f"The engine '{name}' has no precision '{precision}'"
            f"{did_you_mean(precision, ENGINES[name])}: choose "
            f"{', '.join(f'{name}:{each}' for each in ENGINES[name])}."
        )
    return name, precision if colon else None
