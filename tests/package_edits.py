"""Edits of a saved core-ops package, for tests of what notices them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.proto import Model_pb2

from mobilemoe_mlx.mil.weight_file import WeightFile


def spec_of(package: Path) -> Any:
    """The model as coremltools reads it."""
    return ct.utils.load_spec(str(package))


def spec_path(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def operations(spec: Model_pb2.Model, function: str):
    return next(iter(spec.mlProgram.functions[function].block_specializations.values())).operations


def place_of(package: Path, name: str, key: str) -> tuple[Path, int]:
    """The weight file, and the first byte there of constant `name` (`key`: val, data or scale)."""
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(package).read_bytes())
    (op,) = [o for o in operations(spec, "decode") if o.outputs and o.outputs[0].name == name]
    value = op.attributes[key] if key == "val" else op.inputs[key].arguments[0].value
    path = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    return path, WeightFile(path).blob(value.blobFileValue.offset).data_offset


def change(
    package: Path, name: str, key: str, dtype: type, edit: Callable, count: int = 1, at: int = 0
) -> None:
    """Apply `edit` to `count` elements of a constant, from element `at`, in the weight file."""
    path, offset = place_of(package, name, key)
    raw = bytearray(path.read_bytes())
    view = np.frombuffer(raw, dtype, count, offset + at * np.dtype(dtype).itemsize)
    view[:] = edit(view.copy())
    path.write_bytes(raw)


def edit_program(package: Path, edit: Callable, functions: tuple[str, ...]) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(package).read_bytes())
    for function in functions:
        edit(operations(spec, function))
    spec_path(package).write_bytes(spec.SerializeToString())


def renamed(spec: Any, old: str, new: str) -> None:
    """Everywhere in both functions and their descriptions."""
    for described in spec.description.functions:
        for feature in (*described.input, *described.output, *described.state):
            feature.name = new if feature.name == old else feature.name
    for function in spec.mlProgram.functions.values():
        for value in function.inputs:
            value.name = new if value.name == old else value.name
        for block in function.block_specializations.values():
            block.outputs[:] = [new if name == old else name for name in block.outputs]
            for op in block.operations:
                for output in op.outputs:
                    output.name = new if output.name == old else output.name
                for argument in op.inputs.values():
                    for binding in argument.arguments:
                        binding.name = new if binding.name == old else binding.name
