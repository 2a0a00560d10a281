"""A saved package of Core ML's own ops: its interface, weights and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export import manifest
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.metadata import user_defined
from mobilemoe_mlx.export.coreml.options import TARGETS
from mobilemoe_mlx.export.coreml.resources import FORMAT, resources_folder
from mobilemoe_mlx.export.manifest import ListedFile
from mobilemoe_mlx.mil import evaluator
from mobilemoe_mlx.mil.evaluator import Evaluator
from mobilemoe_mlx.mil.program import TensorType, read_package
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.verify.calls import Call
from mobilemoe_mlx.verify.coreml.core_ops_session import CoreOpsSession
from mobilemoe_mlx.verify.coreml.core_ops_weights import check_weights
from mobilemoe_mlx.verify.coreml.evaluation_time import core_ops_seconds
from mobilemoe_mlx.verify.coreml.manifest_facts import manifest_facts
from mobilemoe_mlx.verify.session import Session
from mobilemoe_mlx.verify.weights_check import WeightsCheck


class CoreOpsPackage:
    """The ML Program of Core ML's own ops."""

    format: str = FORMAT
    form: str = "core-ops"
    takes_scores: bool = True
    weight_suffixes: tuple[str, ...] = (".bin",)
    arithmetics: tuple[Arithmetic, ...] = ("float32", "declared")

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path.parent
        self.manifest = resources_folder(path) / manifest.NAME
        self._package = read_package(path)
        functions = sorted(self._package.functions)
        if functions != sorted((names.PREFILL, names.DECODE)):
            raise UserError(f"{path} has the functions {', '.join(functions)}: not an export.")
        self.user_defined = user_defined(self._package.metadata.user_defined)
        prefill = self._package.signatures[names.PREFILL]
        try:
            self.context = prefill.states[names.KEY_CACHE].shape[2]
            self.block = prefill.inputs[names.TOKENS].shape[1]
        except (KeyError, IndexError):
            raise UserError(
                f"{path} has no {names.TOKENS} or no {names.KEY_CACHE} as an export has them."
            ) from None
        systems = {version: name for name, version in TARGETS.items()}
        self.facts = {
            "form": self.form,
            "target": systems.get(self._package.spec_version),
            "context": self.context,
            "prefill_block": self.block,
            "logits": "last" if names.LENGTH in prefill.inputs else "all",
        }

    def manifest_facts(
        self, checkpoint: Checkpoint, listed: Mapping[str, ListedFile]
    ) -> dict[str, Any]:
        """Name -> value of what the manifest must say."""
        return manifest_facts(self, checkpoint, listed)

    def reference(self, model: Model, checkpoint: Checkpoint) -> Model:
        """What MLX is to compute: `model` itself."""
        return model

    def functions(self) -> dict[str, Any]:
        """Function -> "inputs", "outputs", "states" -> name -> "dtype", "shape", "least" shape."""
        return {
            name: {
                kind: {
                    n: {"dtype": t.dtype, "shape": t.shape, "least": t.shape}
                    for n, t in getattr(signature, kind).items()
                }
                for kind in ("inputs", "outputs", "states")
            }
            for name, signature in self._package.signatures.items()
        }

    def cache_bytes(self) -> int:
        """The bytes of its keys and values."""
        states = self._package.signatures[names.DECODE].states
        return states[names.KEY_CACHE].nbytes + states[names.VALUE_CACHE].nbytes

    def check_interface(self, args: ModelArgs) -> None:
        """Raise UserError unless both functions have the interface of a model of `args`."""
        if self._package.default_function != names.DECODE:
            raise UserError(f"{self.path}: its default function is not {names.DECODE}.")
        for function, tokens in ((names.DECODE, 1), (names.PREFILL, self.block)):
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

    def check_weights(self, checkpoint: Checkpoint) -> WeightsCheck:
        """Compare its weights with the checkpoint's, bit for bit."""
        Evaluator(self._package)  # refuses operations that are not as their ops are defined
        return check_weights(self._package, checkpoint)

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """A session that evaluates it in `arithmetic`; its cache is to be reset first."""
        own: evaluator.Arithmetic = "float32" if arithmetic == "float32" else "declared"
        return CoreOpsSession(self._package, args, own)

    def seconds(self, args: ModelArgs, arithmetic: Arithmetic, call: Call) -> float:
        """About how long the evaluation of one call takes, on two processor cores."""
        return core_ops_seconds(args, arithmetic, 1 if call.is_decode else self.block)

    def peak_intermediate_bytes(self) -> int | None:
        """The most bytes of intermediate values alive in one call of either function."""
        evaluated = Evaluator(self._package)
        return max(evaluated.peak_bytes(name) for name in self._package.functions)
