"""The numerics report: how far MLX is from the PyTorch reference, layer by layer and at the logits.

Every measure is defined in docs/numerics.md; here `reference` is PyTorch and `measured` is MLX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mobilemoe_mlx import files
from mobilemoe_mlx.adapters.adapter_file import read_adapter
from mobilemoe_mlx.checkpoint.check import check_scales
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.compare.sequence import check_tolerance, open_for_torch, sequence
from mobilemoe_mlx.compare.trace import load_and_trace_mlx, load_and_trace_torch
from mobilemoe_mlx.compare.versions import versions
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.numerics.json_values import json_values
from mobilemoe_mlx.numerics.measures import (
    LayerComparison,
    TensorError,
    all_not_finite,
    compare_layers,
    compare_predictions,
)
from mobilemoe_mlx.numerics.tolerance import COMPARE_LIMITS, Limit
from mobilemoe_mlx.numerics.values import Trace


@dataclass(frozen=True)
class Comparison:
    """Everything `mobilemoe compare` prints and writes."""

    checkpoint: str
    mlx_dtype: str
    torch_dtype: str
    tokens: int
    layers: tuple[LayerComparison, ...]
    logits: TensorError
    tokens_same_routing: int  # tokens routed alike in every layer
    logits_same_routing: TensorError | None  # of those tokens alone
    top1_agreement: float  # share of tokens whose most likely next token is the same
    kl_mean: float  # KL(PyTorch || MLX), nats a token
    kl_max: float
    tolerance: Limit
    not_finite: tuple[str, ...]  # the first values of either that are not, by whose they are
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether all is finite, and the judged measure of the logits within its limit."""
        return not self.not_finite and self.judged <= self.tolerance.value

    @property
    def judged(self) -> float:
        """The value of the measure that the tolerance is about."""
        return getattr(self.logits, self.tolerance.measure)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        tolerance = self.tolerance._asdict()
        content = {**dataclasses.asdict(self), "tolerance": tolerance, "passed": self.passed}
        return cast(dict[str, Any], json_values(content))

    def write(self, folder: Path) -> None:
        """Write compare.json and compare.png into `folder`, creating it."""
        from mobilemoe_mlx.compare.picture import draw  # matplotlib

        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "compare.json", self.to_dict())
        files.write(folder / "compare.png", draw(self))


def compare_checkpoint(
    folder: Path,
    *,
    adapters: Sequence[tuple[Path, float]] = (),
    dtype: str = "float32",
    torch_dtype: str | None = None,
    prompt: str | None = None,
    num_tokens: int = 128,
    seed: int = 0,
    tolerance: float | None = None,
) -> Comparison:
    """Run `folder` (either published layout) in MLX and in PyTorch on one sequence.

    `adapters`: folders with weights, added on either side by code of its own; those trained through
    INT4 raise UserError, since what they are for is the fused checkpoint.
    `dtype`, `torch_dtype`: "float32", "float16" or "bfloat16"; PyTorch follows MLX unless told.
    The sequence is `prompt`, tokenised, or `num_tokens` random tokens drawn with `seed`.
    `tolerance`: replaces the limit of COMPARE_LIMITS, which is taken from the coarser type.
    Raises UserError for a type the checkpoint cannot be run in (MLX: BF16 folders in float32 or
    bfloat16, INT4 folders in float32 or float16), for another layout, for an empty or over-long
    sequence, for weights that are not finite, for a negative seed, and for a tolerance that is
    negative or not finite.
    """
    torch_dtype = torch_dtype or dtype
    check_tolerance(tolerance)
    checkpoint = open_for_torch(folder)
    for name in (dtype, torch_dtype):
        if name not in COMPARE_LIMITS:
            raise UserError(
                f"'{name}' is not a type to compare in{did_you_mean(name, COMPARE_LIMITS)}: "
                f"choose {', '.join(COMPARE_LIMITS)}."
            )
    for path, _ in adapters:
        if read_adapter(path).through_int4:
            raise UserError(
                f"The adapter {path} was trained through INT4: fuse it, and compare what comes out "
                f"(mobilemoe fuse {folder} {path} OUTPUT)."
            )
    tokens = sequence(folder, checkpoint.args, prompt, num_tokens, seed)
    check_scales(checkpoint)
    check_finite(checkpoint)  # also where no token of this sequence goes
    # One after the other: only one copy of the weights is in memory.
    measured = load_and_trace_mlx(folder, adapters, dtype, tokens)
    reference = load_and_trace_torch(folder, adapters, torch_dtype, tokens)
    judged = max(COMPARE_LIMITS[dtype], COMPARE_LIMITS[torch_dtype], key=lambda t: t.value)
    if tolerance is not None:
        judged = judged._replace(value=tolerance)
    return compare_traces(
        measured,
        reference,
        checkpoint=str(folder),
        dtypes=(dtype, torch_dtype),
        tolerance=judged,
    )


def compare_traces(
    measured: Trace,
    reference: Trace,
    *,
    checkpoint: str,
    dtypes: tuple[str, str],
    tolerance: Limit,
) -> Comparison:
    """Compare two traces of one sequence; `dtypes` are MLX's and PyTorch's."""
    layers, same_routing = compare_layers(measured.layers, reference.layers)
    return Comparison(
        checkpoint=checkpoint,
        mlx_dtype=dtypes[0],
        torch_dtype=dtypes[1],
        tokens=len(reference.logits),
        layers=layers,
        logits=TensorError.between(measured.logits, reference.logits),
        tokens_same_routing=int(same_routing.sum()),
        logits_same_routing=(
            TensorError.between(measured.logits[same_routing], reference.logits[same_routing])
            if same_routing.any()
            else None
        ),
        **compare_predictions(measured.logits, reference.logits)._asdict(),
        tolerance=tolerance,
        not_finite=all_not_finite({"MLX": measured, "PyTorch": reference}),
        versions=versions(),
    )
