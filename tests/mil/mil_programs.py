"""Small ML Programs, built with coremltools and saved to disk as exports are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil import mil
from coremltools.converters.mil.mil import Var, types

IOS18 = ct.target.iOS18

TYPES = {
    "bool": types.bool,
    "int8": types.int8,
    "uint8": types.uint8,
    "int16": types.int16,
    "uint16": types.uint16,
    "int32": types.int32,
    "float16": types.fp16,
    "float32": types.fp32,
}


class FunctionSpec(NamedTuple):
    """A function to be built: names and (dtype, shape) of its inputs, and what it computes."""

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    build: Callable[..., Sequence[Var]]  # called with the inputs and states by name
    states: Mapping[str, tuple[int, ...]] = {}


def save_program(path: Path, functions: Mapping[str, FunctionSpec], target: Any = IOS18) -> Path:
    """Save the functions as the .mlpackage `path`, changed by no optional pass."""
    program = mil.Program()
    for name, spec in functions.items():
        inputs: dict[str, Any] = {
            n: mb.placeholder(shape, TYPES[dtype]) for n, (dtype, shape) in spec.inputs.items()
        }
        inputs |= {
            n: mb.state_tensor_placeholder(shape, types.fp16) for n, shape in spec.states.items()
        }
        with mil.Function(inputs, opset_version=target) as function:
            function.set_outputs(list(spec.build(**function.inputs)))
        program.add_function(name, function)
    program.default_function_name = next(iter(functions))
    program.export_as_multifunction = len(functions) > 1
    model = ct.convert(
        program,
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    model.save(str(path))
    return path


def constant(value: np.ndarray, weight_id: str | None = None) -> Var:
    """A constant that stays an operation of its own; equal ids share one blob."""
    var = mb.const(val=value)
    if weight_id is not None:
        var.op.weight_id = weight_id
    return var


def edit_model(path: Path, change: Callable[[Any], None], copy: Path) -> Path:
    """Copy the package to `copy` and change its protobuf; `change` is given the Model."""
    shutil.copytree(path, copy)
    file = model_file(copy)
    model = ct.proto.Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())
    return copy


def model_file(package: Path) -> Path:
    """Where coremltools puts the model of a package."""
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def operations(model: Any, op_type: str, function: str = "main") -> list[Any]:
    """The protobuf's operations of one type."""
    block = next(iter(model.mlProgram.functions[function].block_specializations.values()))
    return [operation for operation in block.operations if operation.type == op_type]
