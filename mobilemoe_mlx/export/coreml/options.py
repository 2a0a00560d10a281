"""What a Core ML export can be asked for, checked against the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.export.context import CONTEXT, check_context
from mobilemoe_mlx.export.coreml.custom.contract import OLDEST_SYSTEM
from mobilemoe_mlx.export.coreml.expert_blocks import block_rows, most_blocks

# Deployment target -> Core ML specification version. iOS 18 is the first with states and with
# several functions in one package; coremltools 9 knows none beyond iOS 26.
TARGETS = {"iOS18": 9, "iOS26": 10}

# The name that macOS has for the same Core ML.
_SAME_AS = {"macOS15": "iOS18", "macOS26": "iOS26"}

# Rows that the program can tell apart: it numbers them as uint16, Core ML's widest unsigned index.
_MOST_ROWS = 65536


@dataclass(frozen=True)
class ExportOptions:
    """Choices of an export; the defaults are for an iPhone 16 Pro (8 GB).

    A cache of 2,048 positions takes 42 MB for S, 55 MB for M, 67 MB for L (custom layers: twice
    that), and every step reads all of it. In a prefill block of 256 tokens an expert has 17 of its
    own on average, enough to pay for unpacking it, while a short prompt pays for the whole block.
    """

    moe: Literal["core-ops", "custom-layer"] = "core-ops"
    context: int = CONTEXT  # positions in the key/value cache
    prefill_block: int = 256  # tokens of one call of `prefill`
    target: str = "iOS18"
    logits: Literal["last", "all"] = "last"  # of a prefill block: its last token's, or all
    weights_beside: bool = False  # custom layers: weights in a file beside the package

    def check(self, args: ModelArgs) -> None:
        """Raise UserError when a choice is impossible in itself or for the model `args`."""
        if self.moe not in ("core-ops", "custom-layer"):
            raise UserError(f"--moe is '{self.moe}'; it must be core-ops or custom-layer.")
        if self.logits not in ("last", "all"):
            raise UserError(f"--logits is '{self.logits}'; it must be last or all.")
        if self.weights_beside and self.moe != "custom-layer":
            raise UserError(
                "--weights-beside is for --moe custom-layer: a package of core ops has its own "
                "weight file."
            )
        if self.moe == "custom-layer" and self.target != ExportOptions.target:
            raise UserError(
                f"--target {self.target} is for --moe core-ops: custom layers run on iOS 13 and "
                "later, whatever the target."
            )
        if self.deployment_target not in TARGETS:
            raise UserError(_target_problem(self.target))
        check_context(self.context, args)
        if not 2 <= self.prefill_block <= self.context:
            raise UserError(
                f"--prefill-block is {self.prefill_block}; it must be at least 2 tokens and at "
                f"most the context, {self.context:,}."
            )
        slots, experts = args.num_experts_per_tok, args.num_local_experts
        rows = block_rows(self.prefill_block)
        rows *= most_blocks(self.prefill_block, slots, experts, rows)
        if self.moe == "core-ops" and rows > _MOST_ROWS:
            raise UserError(
                f"--prefill-block is {self.prefill_block:,}: with {slots} of {experts} "
                f"experts per token that is {rows:,} rows of experts, beyond the {_MOST_ROWS:,} "
                "that a program can number: ask for less."
            )

    @property
    def deployment_target(self) -> str:
        """`target` under the name that Core ML has on iOS."""
        return _SAME_AS.get(self.target, self.target)

    @property
    def oldest_system(self) -> str:
        """The oldest iOS that loads the package; custom layers have exact shapes since iOS 13."""
        return OLDEST_SYSTEM if self.moe == "custom-layer" else self.deployment_target


def _target_problem(target: str) -> str:
    known = [*TARGETS, *_SAME_AS]
    if found := re.fullmatch(r"(iOS|macOS)(\d+)(\.\d+)*", target):
        first = 18 if found[1] == "iOS" else 15
        if int(found[2]) < first:
            return (
                f"--target is {target}, which has no Core ML states for the key/value cache: "
                "iOS 18 and macOS 15 are the first that do."
            )
    return f"--target is '{target}'{did_you_mean(target, known)}; choose among {', '.join(known)}."
