"""What an ONNX export can be asked for, checked against the model."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.export.context import CONTEXT, check_context

Form = Literal["fused", "portable", "qmoe"]
FORMS: tuple[Form, ...] = typing.get_args(Form)

# Of `MatMulNBits`: what its activations are rounded to. 0 leaves it to the runtime, which takes
# float32 on a CPU; 4 is int8.
AccuracyLevel = Literal[0, 1, 4]
ACCURACY_LEVELS: tuple[AccuracyLevel, ...] = typing.get_args(AccuracyLevel)

Activations = Literal["float32", "float16"]
ACTIVATIONS: tuple[Activations, ...] = typing.get_args(Activations)

# The first ONNX Runtime with every operator of a form: `GatherBlockQuantized` of two codes a byte
# came in 1.23, `QMoE` with weights of the router in 1.32. `fused` was tried with none before 1.22.
OLDEST_RUNTIME: dict[Form, str] = {"fused": "1.22", "portable": "1.23", "qmoe": "1.32"}


@dataclass(frozen=True)
class ExportOptions:
    """Choices of an export.

    A cache of 2,048 positions takes 84 MB for S in float32 and half of that in float16.
    """

    form: Form = "fused"
    context: int = CONTEXT  # positions in the key/value cache
    accuracy_level: AccuracyLevel = 0
    # Of linears, attention and the cache; of the cache alone where layers are our own operators.
    activations: Activations = "float32"
    requantize: bool = False  # qmoe: round the experts again, in groups along *in*

    def check(self, args: ModelArgs) -> None:
        """Raise UserError when a choice is impossible in itself or for the model `args`."""
        if self.form not in FORMS:
            raise UserError(
                f"--form is '{self.form}'{did_you_mean(self.form, FORMS)}; it must be "
                f"{', '.join(FORMS)}."
            )
        if self.accuracy_level not in ACCURACY_LEVELS:
            raise UserError(
                f"--accuracy-level is {self.accuracy_level}; it must be 0 (the runtime's choice), "
                "1 (float32) or 4 (int8)."
            )
        if self.activations not in ACTIVATIONS:
            raise UserError(
                f"--activations is '{self.activations}'; it must be float32 or float16."
            )
        if self.form == "qmoe" and not self.requantize:
            raise UserError(
                "--form qmoe rounds the routed experts a second time: QMoE has its groups of 32 "
                "along the inputs of a matrix, and MobileMoE's lie along its outputs. Add "
                "--requantize to accept this, and the added error is printed; --form portable "
                "keeps every code and scale."
            )
        if self.requantize and self.form != "qmoe":
            raise UserError(f"--requantize is for --form qmoe: {self.form} keeps every code.")
        check_context(self.context, args)
