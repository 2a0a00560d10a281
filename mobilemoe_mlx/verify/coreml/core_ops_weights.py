"""Is every weight of an ML Program, bit for bit, the checkpoint's?"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.rope_table import rope_table
from mobilemoe_mlx.export.int4_source import to_numpy
from mobilemoe_mlx.mil.program import Constant, Function, Operation, Package
from mobilemoe_mlx.verify.weights_check import WeightsCheck, byte_differences

# A table entry may differ from ours in float32's last place, as cosines do between libraries.
_TABLE_ERROR = 2.0**-23


def check_weights(package: Package, checkpoint: Checkpoint) -> WeightsCheck:
    """Compare every constant of both functions with the INT4 tensors of `checkpoint`.

    Codes and scales are compared as bytes, floats as bytes after exact widening, RoPE tables with
    the rotations of the checkpoint's configuration.
    """
    problems: list[str] = []
    tensors = nbytes = 0
    found = {name: _constants(f) for name, f in package.functions.items()}
    # Both functions usually name the same blob, which is then read once.
    seen: dict[str, list[Constant]] = {}
    for constant in names.constants(checkpoint.args):
        for part, expected, sources in _expected(constant, checkpoint):
            tensors += sources
            nbytes += expected.nbytes
            for function, constants in found.items():
                actual = constants.get(part)
                if actual is None:
                    problems.append(f"{function}: has no constant {part}")
                elif not _already(seen, part, actual):
                    problems += [
                        f"{function}: {part}: {why}"
                        for why in _difference(package, actual, expected)
                    ]
    context = package.signatures[names.DECODE].states[names.KEY_CACHE].shape[2]
    for name, table in rope_table(checkpoint.args, context).items():
        for function, constants in found.items():
            if (actual := constants.get(name)) is None:
                problems.append(f"{function}: has no constant {name}")
            elif not _already(seen, name, actual):
                value = np.asarray(package.value(actual))
                problems += _table_difference(function, name, value, table)
    problems += _unused(package)
    for name, saved in package.functions.items():
        problems += _not_consumed(saved, [*seen]) + _biases(package, saved, found[name])
        problems += _epsilons(package, saved, found[name], checkpoint.args.rms_norm_eps)
    return WeightsCheck(tensors, nbytes, tuple(problems))


def _not_consumed(function: Function, parts: list[str]) -> list[str]:
    """Constants that are right, but that nothing computes with."""
    used = {
        argument
        for operation in function.operations
        for argument in chain(*operation.inputs.values())
        if isinstance(argument, str)
    }
    # A linear's codes and scales have one variable, an expert's codes and scales one each.
    linears = {p.removesuffix("_codes").removesuffix("_scale") for p in parts} & used
    return [
        f"{function.name}: nothing uses {part}"
        for part in parts
        if part not in used and part.removesuffix("_codes").removesuffix("_scale") not in linears
    ]


def _epsilons(
    package: Package, function: Function, constants: dict[str, Constant], expected: float
) -> list[str]:
    """Norms by another epsilon, which may change logits by less than a limit."""
    problems = []
    for operation in function.operations:
        if operation.type == "rsqrt":
            constant = _constant_input(operation, "epsilon", constants)
            value = None if constant is None else np.asarray(package.value(constant)).item()
            if value != np.float32(expected):
                problems.append(
                    f"{function.name}: {operation.name} has the epsilon {value}, not {expected}"
                )
    return problems


def _biases(package: Package, function: Function, constants: dict[str, Constant]) -> list[str]:
    """Linears of the model have no bias; coremltools writes one of zeros."""
    problems = []
    for operation in function.operations:
        if operation.type == "linear" and "bias" in operation.inputs:
            constant = _constant_input(operation, "bias", constants)
            if constant is None or np.any(np.asarray(package.value(constant))):
                problems.append(f"{function.name}: {operation.name} has a bias")
    return problems


def _unused(package: Package) -> list[str]:
    """Blobs of the weight file that no operation names."""
    if package.weights is None:
        return []
    used = {
        argument.blob
        for function in package.functions.values()
        for operation in function.operations
        for argument in chain(operation.attributes.values(), *operation.inputs.values())
        if isinstance(argument, Constant)
    }
    return [
        f"weight.bin has {blob.nbytes} bytes at {blob.offset} that no operation uses"
        for blob in package.weights.blobs()
        if blob.offset not in used
    ]


def _already(seen: dict[str, list[Constant]], name: str, constant: Constant) -> bool:
    before = seen.setdefault(name, [])
    if constant.blob is not None and any(
        c.blob == constant.blob and c.type == constant.type for c in before
    ):
        return True
    before.append(constant)
    return False


def _constants(function: Function) -> dict[str, Constant]:
    """Constants by name; those of a quantised linear as NAME_codes and NAME_scale."""
    found: dict[str, Constant] = {}
    for operation in function.operations:
        if operation.type == "const":
            found[operation.outputs[0][0]] = operation.attributes["val"]
        elif operation.type == "constexpr_blockwise_shift_scale":
            name = operation.outputs[0][0]
            found |= {
                f"{name}_{part}": constant
                for part, key in (("codes", "data"), ("scale", "scale"))
                if (constant := _argument(operation, key)) is not None
            }
    return found


def _constant_input(
    operation: Operation, name: str, constants: dict[str, Constant]
) -> Constant | None:
    """The constant that an input is or names; None where it is none."""
    (argument,) = operation.inputs.get(name, (None,))
    return constants.get(argument) if isinstance(argument, str) else argument


def _argument(operation: Operation, name: str) -> Constant | None:
    argument = operation.inputs[name][0]
    return argument if isinstance(argument, Constant) else None


def _expected(
    constant: names.Constant, checkpoint: Checkpoint
) -> Iterable[tuple[str, np.ndarray, int]]:
    """(Name in the package, the checkpoint's array, how many tensors it is) of one constant."""
    tensors = checkpoint.tensors
    if constant.form == "int4":
        for suffix, part in (("qweight", "codes"), ("weight_scale", "scale")):
            arrays = [to_numpy(tensors[f"{s}.{suffix}"]) for s in constant.sources]
            yield f"{constant.name}_{part}", np.concatenate(arrays), len(arrays)
    else:
        yield constant.name, to_numpy(tensors[constant.sources[0]]), 1


def _difference(package: Package, constant: Constant, expected: np.ndarray) -> list[str]:
    if constant.blob is not None and package.weights is not None:
        package.value(constant)  # checks the blob's type and size against the program's
        actual = package.weights.raw(constant.blob)
    else:
        actual = np.ascontiguousarray(package.value(constant)).reshape(-1).view(np.uint8)
    return byte_differences(actual, expected)


def _table_difference(
    function: str, name: str, actual: np.ndarray, expected: np.ndarray
) -> list[str]:
    if actual.shape != expected.shape:
        return [f"{function}: {name} has the shape {actual.shape}, expected {expected.shape}"]
    wrong = np.argwhere(~(np.abs(actual - expected) <= _TABLE_ERROR))  # a NaN is wrong
    if not wrong.size:
        return []
    position, pair = wrong[0]
    return [f"{function}: {name} is wrong at {len(wrong)} places, first [{position}, {pair}]"]
