"""Open a saved package of either form, as the checks need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.metadata import user_defined
from mobilemoe_mlx.export.coreml.options import TARGETS
from mobilemoe_mlx.mil.evaluator import Arithmetic, Evaluator
from mobilemoe_mlx.mil.model_file import model_file
from mobilemoe_mlx.mil.program import TensorType, read_package
from mobilemoe_mlx.verify.custom_layer_package import Feature, read_custom_layer_model
from mobilemoe_mlx.verify.custom_layer_weights import check_layer_weights
from mobilemoe_mlx.verify.session import CustomLayerSession, MLProgramSession, Session
from mobilemoe_mlx.verify.weights import WeightsReport, check_weights


class SavedPackage(Protocol):
    """A package on disk."""

    path: Path
    form: str
    context: int
    user_defined: dict[str, str]  # the metadata that an export leaves, without its prefix
    arithmetics: tuple[Arithmetic, ...]  # in which it can be evaluated
    facts: dict[str, Any]  # what it is, by its program alone: form, context, prefill_block, logits

    def check_interface(self, args: ModelArgs) -> None:
        """Raise UserError unless it has the inputs, outputs and states of a model of `args`.

        And the values that checks look at, with the types that they are promised to have.
        """

    def check_weights(self, checkpoint: Checkpoint) -> WeightsReport:
        """Compare its weights with the checkpoint's, bit for bit."""

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """Evaluate it in `arithmetic`."""

    def peak_intermediate_bytes(self) -> int | None:
        """The most bytes of intermediate values alive in one call, if its form says."""


class CoreOpsPackage:
    """The ML Program of Core ML's own ops."""

    form: str = "core-ops"
    arithmetics: tuple[Arithmetic, ...] = ("float32", "declared")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._package = read_package(path)
        functions = sorted(self._package.functions)
        if functions != sorted((names.PREFILL, names.DECODE)):
            raise UserError(f"{path} has the functions {', '.join(functions)}: not an export.")
        self.user_defined = user_defined(self._package.metadata.user_defined)
        prefill = self._package.signatures[names.PREFILL]
        try:
            self.context = prefill.states[names.KEY_CACHE].shape[2]
            block = prefill.inputs[names.TOKENS].shape[1]
        except (KeyError, IndexError):
            raise UserError(
                f"{path} has no {names.TOKENS} or no {names.KEY_CACHE} as an export has them."
            ) from None
        systems = {version: name for name, version in TARGETS.items()}
        self.facts = {
            "form": self.form,
            "target": systems.get(self._package.spec_version),
            "context": self.context,
            "prefill_block": block,
            "logits": "last" if names.LENGTH in prefill.inputs else "all",
        }

    def check_interface(self, args: ModelArgs) -> None:
        """Raise UserError unless both functions have the interface of a model of `args`."""
        if self._package.default_function != names.DECODE:
            raise UserError(f"{self.path}: its default function is not {names.DECODE}.")
        block = self._package.signatures[names.PREFILL].inputs[names.TOKENS].shape[1]
        for function, tokens in ((names.DECODE, 1), (names.PREFILL, block)):
            for name, (found, expected) in self._interface(args, function, tokens).items():
                if found != expected:
                    raise UserError(
                        f"{self.path}: {function}: {name} is {found}, an export has {expected}."
                    )

    def _interface(
        self, args: ModelArgs, function: str, tokens: int
    ) -> dict[str, tuple[TensorType | None, TensorType | None]]:
        """Name -> what the function has, and what it must have; None: nothing."""
        cache = TensorType(
            "float16",
            (args.num_hidden_layers, args.num_key_value_heads, self.context, args.head_dim),
        )
        rows = tokens if self.facts["logits"] == "all" else 1
        expected = {
            names.TOKENS: TensorType("int32", (1, tokens)),
            names.POSITION: TensorType("int32", (1,)),
            names.LOGITS: TensorType("float16", (1, rows, args.vocab_size)),
            names.KEY_CACHE: cache,
            names.VALUE_CACHE: cache,
        }
        if tokens > 1 and self.facts["logits"] == "last":
            expected[names.LENGTH] = TensorType("int32", (1,))
        signature = self._package.signatures[function]
        found = {**signature.inputs, **signature.outputs, **signature.states}
        values = {n: t for o in self._package.functions[function].operations for n, t in o.outputs}
        for index in range(args.num_hidden_layers):
            shapes = {
                names.hidden(index): (tokens, args.hidden_size),
                names.scores(index): (tokens, args.num_local_experts),
                names.selection(index): (
                    tokens,
                    args.num_experts_per_tok,
                    args.num_local_experts,
                ),
            }
            expected |= {name: TensorType("float32", shape) for name, shape in shapes.items()}
            found |= {name: values[name] for name in shapes if name in values}
        return {n: (found.get(n), expected.get(n)) for n in (*expected, *found)}

    def check_weights(self, checkpoint: Checkpoint) -> WeightsReport:
        """Compare its weights with the checkpoint's, bit for bit."""
        Evaluator(self._package)  # refuses operations that are not as their ops are defined
        return check_weights(self._package, checkpoint)

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """Evaluate it in `arithmetic`."""
        return MLProgramSession(self._package, args, arithmetic)

    def peak_intermediate_bytes(self) -> int | None:
        """The most bytes of intermediate values alive in one call of either function."""
        evaluator = Evaluator(self._package)
        return max(evaluator.peak_bytes(name) for name in self._package.functions)


class CustomLayerPackage:
    """The NeuralNetwork of custom layers, each computed by the reference of its contract."""

    form: str = "custom-layer"
    arithmetics: tuple[Arithmetic, ...] = ("float32",)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._package = read_custom_layer_model(path)
        self.user_defined = user_defined(self._package.user_defined)
        self.context = self._package.inputs[names.KEY_CACHE].shape[2]
        (head,) = self._package.layers_of(contract.HEAD)
        block = self._package.inputs[names.TOKENS].sizes[0][1]
        self.facts = {
            "form": self.form,
            "target": contract.OLDEST_SYSTEM,
            "context": self.context,
            "prefill_block": block,
            "logits": head.parameters["logits"],
        }

    def check_interface(self, args: ModelArgs) -> None:
        """Raise UserError unless inputs, outputs and layers are those of a model of `args`."""
        any_count = (1, self.facts["prefill_block"])
        layers, heads = args.num_hidden_layers, args.num_key_value_heads
        cache = _feature(np.float32, layers, heads, self.context, args.head_dim)
        rows = _feature(np.float32, layers, heads, any_count, args.head_dim)
        logit_rows = any_count if self.facts["logits"] == "all" else 1
        expected = {
            names.TOKENS: _feature(np.int32, any_count),
            names.POSITION: _feature(np.int32, 1),
            names.KEY_CACHE: cache,
            names.VALUE_CACHE: cache,
            names.LOGITS: _feature(np.float32, logit_rows, args.vocab_size),
            names.NEW_KEYS: rows,
            names.NEW_VALUES: rows,
        }
        found = {**self._package.inputs, **self._package.outputs}
        for name in (*expected, *found):
            if found.get(name) != expected.get(name):
                raise UserError(
                    f"{self.path}: {name} is {found.get(name)}, an export has {expected.get(name)}."
                )
        made = [(layer.name, layer.outputs[0]) for layer in self._package.layers]
        indices = [layer.parameters.get("layer") for layer in self._package.layers]
        pairs = [
            (names.layer(index, part), value)
            for index in range(layers)
            for part, value in (
                ("attention", names.layer(index, "attended")),
                ("moe", names.hidden(index)),
            )
        ]
        numbers = [index for index in range(layers) for _ in range(2)]
        if made[1 : 1 + len(pairs)] != pairs or indices[1 : 1 + len(pairs)] != numbers:
            raise UserError(f"{self.path}: its layers are not those of an export.")

    def check_weights(self, checkpoint: Checkpoint) -> WeightsReport:
        """Compare its weights with the checkpoint's, bit for bit."""
        return check_layer_weights(self._package, checkpoint)

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """Evaluate it."""
        return CustomLayerSession(self._package, args)

    def peak_intermediate_bytes(self) -> int | None:
        """What a layer needs is its class's business."""
        return None


def _feature(dtype: type, *sizes: int | tuple[int, int]) -> Feature:
    ranges = tuple(size if isinstance(size, tuple) else (size, size) for size in sizes)
    return Feature(np.dtype(dtype), ranges)


def open_saved(path: Path) -> SavedPackage:
    """The package at `path`; raises UserError for anything that is no whole export."""
    # An ML Program of ours always has a weight file, and the other form never has. Its model, which
    # holds the weights, is read only once so.
    has_weight_file = (model_file(path).parent / "weights").is_dir()
    return CoreOpsPackage(path) if has_weight_file else CustomLayerPackage(path)
