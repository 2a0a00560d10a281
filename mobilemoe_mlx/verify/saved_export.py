"""What the proof needs of a saved export, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.verify.session import Session
from mobilemoe_mlx.verify.weights_check import WeightsCheck


class SavedExport(Protocol):
    """An export on disk."""

    path: Path
    format: str  # of its manifest: "mobilemoe-coreml"
    form: str  # which of the format's forms it is: "core-ops"
    manifest: Path  # where its manifest is, if it has one
    context: int
    user_defined: dict[str, str]  # the metadata that an export leaves, without its prefix
    arithmetics: tuple[Arithmetic, ...]  # in which it can be evaluated
    facts: dict[str, Any]  # what it is, by its program alone: form, context, prefill_block, logits

    def check_interface(self, args: ModelArgs) -> None:
        """Raise UserError unless it has the inputs, outputs and states of a model of `args`.

        And the values that checks look at, with the types that they are promised to have.
        """

    def check_weights(self, checkpoint: Checkpoint) -> WeightsCheck:
        """Compare its weights with the checkpoint's, bit for bit."""

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """Evaluate it in `arithmetic`."""

    def peak_intermediate_bytes(self) -> int | None:
        """The most bytes of intermediate values alive in one call, if its form says."""
