"""Open a saved package of either form, as the checks need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from mobilemoe_mlx.checkpoint_check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.coreml import custom_layer_contract as contract
from mobilemoe_mlx.coreml import names
from mobilemoe_mlx.coreml.metadata import user_defined
from mobilemoe_mlx.coreml.options import TARGETS
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.verify.custom_layer_package import read_custom_layer_model
from mobilemoe_mlx.verify.custom_layer_weights import check_layer_weights
from mobilemoe_mlx.verify.mil_evaluator import Arithmetic, Evaluator
from mobilemoe_mlx.verify.mil_program import read_package
from mobilemoe_mlx.verify.model_file import model_file
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
        self.context = prefill.states[names.KEY_CACHE].shape[2]
        systems = {version: name for name, version in TARGETS.items()}
        self.facts = {
            "form": self.form,
            "target": systems.get(self._package.spec_version),
            "context": self.context,
            "prefill_block": prefill.inputs[names.TOKENS].shape[1],
            "logits": "last" if names.LENGTH in prefill.inputs else "all",
        }

    def check_weights(self, checkpoint: Checkpoint) -> WeightsReport:
        """Compare its weights with the checkpoint's, bit for bit."""
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
        self.facts = {
            "form": self.form,
            "target": contract.OLDEST_SYSTEM,
            "context": self.context,
            "prefill_block": self._package.inputs[names.TOKENS].sizes[0][1],
            "logits": head.parameters["logits"],
        }

    def check_weights(self, checkpoint: Checkpoint) -> WeightsReport:
        """Compare its weights with the checkpoint's, bit for bit."""
        return check_layer_weights(self._package, checkpoint)

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """Evaluate it."""
        return CustomLayerSession(self._package, args)

    def peak_intermediate_bytes(self) -> int | None:
        """What a layer needs is its class's business."""
        return None


def open_saved(path: Path) -> SavedPackage:
    """The package at `path`; raises UserError for anything that is no whole export."""
    # An ML Program of ours always has a weight file, and the other form never has. Its model, which
    # holds the weights, is read only once so.
    has_weight_file = (model_file(path).parent / "weights").is_dir()
    return CoreOpsPackage(path) if has_weight_file else CustomLayerPackage(path)
