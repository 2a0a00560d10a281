"""What a saved function says without being run: that each operation is known, and its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.mil.ops import OPERATORS
from mobilemoe_mlx.mil.ops.base import Parameter
from mobilemoe_mlx.mil.program import (
    Argument,
    Constant,
    Function,
    Operation,
    StateType,
    TensorType,
)

_RANKS = {"scalar": 0, "list": 1}  # of the kinds of parameters that have one


@dataclass(frozen=True, eq=False)
class Step:
    """An operation to compute, and the variables that no later step uses."""

    operation: Operation
    frees: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked function: steps, without the constants, which are made where they are used."""

    function: Function
    steps: tuple[Step, ...]
    constants: Mapping[str, Operation]  # variable -> the const or constexpr operation that gives it
    peak_bytes: int  # see `Evaluator.peak_bytes`


def plan_function(function: Function, opset: str) -> Plan:
    """Check all operations of a function and plan their order and memory.

    Raises UserError, naming the operation, for an op, input, attribute or type that is not known,
    a variable used before it is computed or computed twice, and for another opset than `opset`.
    """
    if function.opset != opset:
        raise UserError(
            f"function '{function.name}': is written for {function.opset}, its model for {opset}."
        )
    types: dict[str, TensorType | StateType] = dict(function.inputs)
    constants: dict[str, Operation] = {}
    computed: list[Operation] = []
    for operation in function.operations:
        try:
            _check(operation, types, constants)
            for name, declared in operation.outputs:
                if name in types:
                    raise UserError(f"its result '{name}' exists already")
                types[name] = declared
        except UserError as error:
            raise UserError(f"{where(function, operation)}: {error}.") from None
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            constants[operation.outputs[0][0]] = operation
        else:
            computed.append(operation)
    for name in function.outputs:
        if not isinstance(types.get(name), TensorType):
            raise UserError(f"function '{function.name}': its output '{name}' is not computed.")
    steps = _steps(function, computed, constants)
    return Plan(function, steps, constants, _peak_bytes(function, steps))


def where(function: Function, operation: Operation) -> str:
    """How messages name an operation."""
    return f"function '{function.name}', {operation.type} '{operation.name}'"


def _check(
    operation: Operation,
    types: Mapping[str, TensorType | StateType],
    constants: Mapping[str, Operation],
) -> None:
    is_const = operation.type == "const"
    known = {"name", "val"} if is_const else {"name"}
    if others := sorted(set(operation.attributes) - known):
        raise UserError(f"the attribute '{others[0]}' is not known")
    if is_const:
        value = operation.attributes.get("val")
        if operation.inputs or value is None or [t for _, t in operation.outputs] != [value.type]:
            raise UserError("it is no constant of its declared type")
    elif operation.type in ("read_state", "write_state"):
        _check_state(operation, types)
    elif operation.type in OPERATORS:
        _check_operator(operation, types, constants)
    else:
        raise UserError(f"the op is not known{did_you_mean(operation.type, OPERATORS)}")


def _check_state(operation: Operation, types: Mapping[str, TensorType | StateType]) -> None:
    reads = operation.type == "read_state"
    _check_names(operation, {"input"} if reads else {"input", "data"}, optional=set())
    (name,) = _single(operation, "input")
    state = types.get(name) if isinstance(name, str) else None
    if not isinstance(state, StateType):
        raise UserError("its input is no state")
    held = [t for _, t in operation.outputs]
    if not reads:
        if held:
            raise UserError("it has a result")
        held = [_type(_single(operation, "data")[0], types)]
    if held != [state.tensor]:
        raise UserError(f"the state holds {state.tensor}, not {', '.join(map(str, held))}")


def _check_operator(
    operation: Operation,
    types: Mapping[str, TensorType | StateType],
    constants: Mapping[str, Operation],
) -> None:
    operator = OPERATORS[operation.type]
    required = {name for name, p in operator.parameters.items() if p.required}
    _check_names(operation, required, optional=set(operator.parameters) - required)
    bound: dict[str, str] = {}  # letter -> the type it stands for in this operation
    for name, parameter in operator.parameters.items():
        if name not in operation.inputs:
            continue
        arguments = operation.inputs[name]
        if parameter.kind != "tensors":
            arguments = _single(operation, name)
        for argument in arguments:
            given = _type(argument, types)
            _check_argument(name, parameter, argument, given, constants)
            letter = parameter.types
            domain = operator.domains.get(letter, (letter,))
            if given.dtype not in domain or bound.setdefault(letter, given.dtype) != given.dtype:
                expected = bound.get(letter) or " or ".join(domain)
                raise UserError(f"its input '{name}' is {given}, not {expected}")
    if operator.result is not None:
        result = bound.get(operator.result, operator.result)
        for name, declared in operation.outputs:
            if declared.dtype != result:
                raise UserError(f"its result '{name}' is declared {declared}, not {result}")


def _check_argument(
    name: str,
    parameter: Parameter,
    argument: Argument,
    given: TensorType,
    constants: Mapping[str, Operation],
) -> None:
    if parameter.const and not (isinstance(argument, Constant) or argument in constants):
        raise UserError(f"its input '{name}' is not constant")
    rank = _RANKS.get(parameter.kind)
    if rank is not None and len(given.shape) != rank:
        raise UserError(f"its input '{name}' is {given}, not of rank {rank}")


def _check_names(operation: Operation, required: set[str], optional: set[str]) -> None:
    for name in operation.inputs:
        if name not in required | optional:
            raise UserError(
                f"the input '{name}' is not known{did_you_mean(name, required | optional)}"
            )
    for name in sorted(required - set(operation.inputs)):
        raise UserError(f"it lacks the input '{name}'")


def _single(operation: Operation, name: str) -> tuple[Argument, ...]:
    arguments = operation.inputs[name]
    if len(arguments) != 1:
        raise UserError(f"its input '{name}' has {len(arguments)} values")
    return arguments


def _type(argument: Argument, types: Mapping[str, TensorType | StateType]) -> TensorType:
    given = argument.type if isinstance(argument, Constant) else types.get(argument)
    if given is None:
        raise UserError(f"it uses '{argument}', which is not computed before it")
    if not isinstance(given, TensorType):
        raise UserError(f"it uses {'a list' if isinstance(argument, Constant) else argument}")
    return given


def _steps(
    function: Function, computed: list[Operation], constants: Mapping[str, Operation]
) -> tuple[Step, ...]:
    """The operations, each with what it is the last to use (or to give, if nothing uses it)."""
    last: dict[str, int] = {}
    for i, operation in enumerate(computed):
        used = [a for arguments in operation.inputs.values() for a in arguments]
        for name in (*used, *(name for name, _ in operation.outputs)):
            if isinstance(name, str) and name not in constants and name not in function.states:
                last[name] = i
    frees: list[list[str]] = [[] for _ in computed]
    for name, i in last.items():
        if name not in function.outputs:
            frees[i].append(name)
    return tuple(Step(o, tuple(f)) for o, f in zip(computed, frees, strict=True))


def _peak_bytes(function: Function, steps: tuple[Step, ...]) -> int:
    sizes = {name: declared.nbytes for name, declared in function.tensors.items()}
    live = peak = sum(sizes.values())
    for step in steps:
        for name, declared in step.operation.outputs:
            sizes[name] = declared.nbytes
            live += declared.nbytes
        peak = max(peak, live)
        live -= sum(sizes[name] for name in step.frees)
    return peak
