"""What the proof needs of a saved export, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.manifest import ListedFile
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.verify.calls import Call
from mobilemoe_mlx.verify.session import Session
from mobilemoe_mlx.verify.weights_check import WeightsCheck


class SavedExport(Protocol):
    """An export on disk."""

    path: Path
    root: Path  # the folder from which its manifest names files
    format: str  # of its manifest: "mobilemoe-coreml"
    form: str  # which of the format's forms it is: "core-ops"
    manifest: Path  # where its manifest is, if it has one
    block: int  # most tokens of one call
    context: int  # positions in the cache
    takes_scores: bool  # whether a session can be routed by given scores
    user_defined: dict[str, str]  # the metadata that an export leaves, without its prefix
    arithmetics: tuple[Arithmetic, ...]  # in which it can be evaluated, the nearest to MLX first
    facts: dict[str, Any]  # what it is, by its program alone: form, context, ...

    def manifest_facts(
        self, checkpoint: Checkpoint, listed: Mapping[str, ListedFile]
    ) -> dict[str, Any]:
        """Name -> value of what the manifest, which lists the files `listed`, must say."""

    def reference(self, model: Model, checkpoint: Checkpoint) -> Model:
        """The model that it should compute, made of `model`, which is the checkpoint's."""

    def check_interface(self, args: ModelArgs) -> None:
        """Raise UserError unless it has the inputs, outputs and states of a model of `args`.

        The values that checks look at must have the types that exports give them as well.
        """

    def check_weights(self, checkpoint: Checkpoint) -> WeightsCheck:
        """Compare its weights with the checkpoint's, bit for bit."""

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """A session that evaluates it in `arithmetic`; its cache is to be reset first."""

    def seconds(self, args: ModelArgs, arithmetic: Arithmetic, call: Call) -> float:
        """About how long the evaluation of one call takes, on two processor cores."""

    def peak_intermediate_bytes(self) -> int | None:
        """The most bytes of intermediate values alive in one call, if its form says."""
