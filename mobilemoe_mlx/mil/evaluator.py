"""Run a function of a saved ML Program in numpy, with states.

Everything that can be checked without numbers is checked when the evaluator is made: that each op,
input, attribute and type is known. What a run computes must have the shapes and types that the
program declares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.mil.ops import OPERATORS
from mobilemoe_mlx.mil.ops.base import Parameter
from mobilemoe_mlx.mil.plan import Plan, plan_function, where
from mobilemoe_mlx.mil.program import Argument, Constant, Operation, Package, TensorType

Arithmetic = Literal["declared", "float32"]

# Specification version -> opset, for iOS 18 and iOS 26 (which coremltools 9 gives the same ops).
OPSETS = {9: "CoreML8", 10: "CoreML9"}


class _Placed(UserError):
    """An error whose message names the package and the operation already."""


class Evaluator:
    """Runs the functions of a package.

    `arithmetic`: "declared" rounds each op's result to its declared type, with sums in float32
    inside an op; "float32" holds float16 as float32 and rounds nothing, so that only a wrong
    program differs from a float32 reference.

    `cache_bytes` bounds the memory for constants that had to be dequantised or converted. The
    first that fit are kept and none is dropped for another: each step of a model uses all its
    constants in the same order, where the least recently used is always the next one needed.

    Raises UserError for a package of another target than iOS 18 or 26 and for anything in it whose
    meaning is not known here.
    """

    def __init__(
        self,
        package: Package,
        arithmetic: Arithmetic = "declared",
        cache_bytes: int = 2_000_000_000,
    ) -> None:
        if arithmetic not in get_args(Arithmetic):
            raise ValueError(f"there is no arithmetic {arithmetic!r}")
        self.package = package
        self.arithmetic = arithmetic
        self._half = np.dtype(np.float16 if arithmetic == "declared" else np.float32)
        self._cache: dict[Any, np.ndarray] = {}
        self._cache_left = cache_bytes
        if (opset := OPSETS.get(package.spec_version)) is None:
            raise UserError(
                f"{package.path}: has specification version {package.spec_version}; "
                "only 9 (iOS 18) and 10 (iOS 26) can be verified."
            )
        try:
            self._plans = {n: plan_function(f, opset) for n, f in package.functions.items()}
        except UserError as error:
            raise UserError(f"{package.path}: {error}") from None

    def new_state(self, function: str) -> dict[str, np.ndarray]:
        """The states of a function before its first run: zeros of their declared shapes.

        float16 states are float32 in "float32" arithmetic.
        """
        states = self._plan(function).function.states
        return {name: np.zeros(t.shape, _numpy_type(t, self._half)) for name, t in states.items()}

    def peak_bytes(self, function: str) -> int:
        """The most bytes of variables that are alive at once, at their declared types.

        Counts inputs and every op's results in the program's order, each until its last use;
        neither constants nor the states themselves.
        """
        return self._plan(function).peak_bytes

    def run(
        self,
        function: str,
        inputs: Mapping[str, np.ndarray],
        state: dict[str, np.ndarray],
        watch: Callable[[str, np.ndarray], None] | None = None,
        instead: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Evaluate `function`: its outputs by name, of their declared shapes and types.

        `inputs` and `state` must have exactly the declared names, shapes and types (float32 for
        float16 in "float32" arithmetic). The arrays of `state` are overwritten with the new state,
        if the run succeeds. `watch` is called with the name and value of each variable computed;
        copy what you keep. `instead`: values that variables take in place of what is computed for
        them. Raises UserError, naming the operation, where an input is wrong, an index is out of
        range or a result has another shape or type than the program declares.
        """
        plan = self._plan(function)
        self._check_arrays(f"function '{function}', input", plan.function.tensors, inputs)
        self._check_arrays(f"function '{function}', state", plan.function.states, state)
        values = {name: _frozen(array) for name, array in inputs.items()}
        current = {name: _frozen(array) for name, array in state.items()}
        with np.errstate(all="ignore"):  # float16 overflows to infinity, as it does on a device
            for step in plan.steps:
                results = self._evaluate(plan, step.operation, values, current)
                for (name, declared), result in zip(step.operation.outputs, results, strict=True):
                    if instead is not None and name in instead:
                        result = _frozen(instead[name])
                        _check(name, result, declared, self._half)
                    values[name] = result
                    if watch is not None:
                        watch(name, result)
                for name in step.frees:
                    del values[name]
            outputs = {n: np.array(self._variable(plan, n, values)) for n in plan.function.outputs}
        for name, array in state.items():
            np.copyto(array, current[name])
        return outputs

    def _plan(self, function: str) -> Plan:
        if function not in self._plans:
            raise UserError(
                f"{self.package.path}: has no function '{function}'"
                f"{did_you_mean(function, self._plans)}; it has {', '.join(self._plans)}."
            )
        return self._plans[function]

    def _check_arrays(
        self, what: str, declared: Mapping[str, TensorType], given: Mapping[str, np.ndarray]
    ) -> None:
        if set(declared) != set(given):
            raise UserError(
                f"{self.package.path}: {what}s are {', '.join(declared) or 'none'}, "
                f"not {', '.join(given) or 'none'}."
            )
        for name, type in declared.items():
            try:
                _check(name, given[name], type, self._half)
            except UserError as error:
                raise UserError(f"{self.package.path}: {what} {error}.") from None

    def _evaluate(
        self,
        plan: Plan,
        operation: Operation,
        values: Mapping[str, np.ndarray],
        current: dict[str, np.ndarray],
    ) -> tuple[np.ndarray, ...]:
        """The results of one operation; `current` has the states and receives what is written.

        Messages of numpy about shapes become sentences that name the operation, too.
        """
        try:
            results = self._compute(plan, operation, values, current)
            if len(results) != len(operation.outputs):
                raise UserError(f"it has {len(results)} results, {len(operation.outputs)} declared")
            for (name, declared), result in zip(operation.outputs, results, strict=True):
                _check(name, result, declared, self._half)
        except _Placed:  # in a constant of this operation
            raise
        except (UserError, ValueError, IndexError) as error:
            place = f"{self.package.path}: {where(plan.function, operation)}"
            raise _Placed(f"{place}: {str(error).rstrip('.')}.") from error
        return tuple(_frozen(result) for result in results)

    def _compute(
        self,
        plan: Plan,
        operation: Operation,
        values: Mapping[str, np.ndarray],
        current: dict[str, np.ndarray],
    ) -> tuple[np.ndarray, ...]:
        if operation.type in ("read_state", "write_state"):
            (state,) = operation.inputs["input"]
            assert isinstance(state, str)
            if operation.type == "read_state":
                return (current[state],)
            (data,) = operation.inputs["data"]
            current[state] = self._argument(plan, data, values)
            return ()
        operator = OPERATORS[operation.type]
        given: dict[str, Any] = {"half": self._half} if operator.takes_half else {}
        for name, arguments in operation.inputs.items():
            arrays = tuple(self._argument(plan, argument, values) for argument in arguments)
            given[name] = _as_parameter(operator.parameters[name], arrays)
        results = operator.compute(**given)
        return results if isinstance(results, tuple) else (results,)

    def _argument(self, plan: Plan, argument: Argument, values: Mapping[str, np.ndarray]) -> Any:
        if isinstance(argument, Constant):  # of a constexpr op, whose result is what is cached
            return self._converted(argument)
        return self._variable(plan, argument, values)

    def _variable(self, plan: Plan, name: str, values: Mapping[str, np.ndarray]) -> Any:
        """A variable's value; a constant is read or dequantised now, unless the cache has it."""
        if name in values:
            return values[name]
        operation = plan.constants[name]
        if operation.type == "const":
            constant = operation.attributes["val"]
            if constant.blob is None or self._half == np.float16:
                return self._converted(constant)
            return self._cached(operation, lambda: self._converted(constant))
        return self._cached(operation, lambda: self._evaluate(plan, operation, values, {})[0])

    def _converted(self, constant: Constant) -> Any:
        """A constant's value, with float16 as this arithmetic holds it."""
        value = self.package.value(constant)
        if isinstance(value, np.ndarray) and value.dtype == np.float16:
            return value.astype(self._half, copy=False)
        return value

    def _cached(self, operation: Operation, make: Callable[[], np.ndarray]) -> np.ndarray:
        key = _blobs(operation)
        if key in self._cache:
            return self._cache[key]
        value = make()
        if key is not None and value.nbytes <= self._cache_left:
            self._cache_left -= value.nbytes
            self._cache[key] = value
        return value


def _blobs(operation: Operation) -> Any:
    """What equal constants of two functions have in common; None if not all is in weight.bin."""
    given = operation.inputs or {"val": (operation.attributes["val"],)}
    places = [
        (name, argument.blob if isinstance(argument, Constant) else None)
        for name, arguments in given.items()
        for argument in arguments
    ]
    if any(blob is None for _, blob in places):
        return None
    return operation.type, operation.outputs[0][1], frozenset(places)


def _as_parameter(parameter: Parameter, arrays: tuple[Any, ...]) -> Any:
    if parameter.kind == "tensors":
        return arrays
    (value,) = arrays
    if parameter.kind == "tensor" or isinstance(value, str):
        return value
    return value.item() if parameter.kind == "scalar" else tuple(value.tolist())


def _numpy_type(declared: TensorType, half: np.dtype) -> str:
    return half.name if declared.dtype == "float16" else declared.dtype


def _check(name: str, value: Any, declared: TensorType, half: np.dtype) -> None:
    expected = _numpy_type(declared, half)
    if not isinstance(value, np.ndarray):
        raise UserError(f"'{name}' is no numpy array")
    if value.shape != declared.shape or value.dtype.name != expected:
        raise UserError(
            f"'{name}' is {value.dtype} {list(value.shape)}, "
            f"declared {declared} (here as {expected})"
        )


def _frozen(value: np.ndarray) -> np.ndarray:
    """A read-only view: operations share arrays, which none of them may change."""
    view = value.view()
    view.flags.writeable = False
    return view
