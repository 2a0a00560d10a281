"""Gradients of every parameter, MLX against PyTorch: `mobilemoe compare --backward`."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilemoe_mlx import files
from mobilemoe_mlx.all_or_none import write_together
from mobilemoe_mlx.compare.torch_checkpoint import DTYPES, load_torch_model
from mobilemoe_mlx.compare.torch_training import trained, training_loss
from mobilemoe_mlx.compare.training_side import TrainingType, gradients
from mobilemoe_mlx.compare.versions import versions
from mobilemoe_mlx.numerics.json_values import json_values
from mobilemoe_mlx.numerics.measures import TensorError
from mobilemoe_mlx.numerics.tolerance import FLOAT32_LIMIT, Limit
from mobilemoe_mlx.train.recipe import RoutingConfig

import torch  # isort: skip  (after torch_model, which explains a missing PyTorch)

# float32: of each parameter. bfloat16: of the whole gradient, ||MLX - PyTorch|| / ||PyTorch||,
# since near ties in the routing give a token's share of an expert's gradient to another expert;
# about three times the largest measured (docs/numerics.md).
GRADIENT_LIMITS = {"float32": Limit("max", FLOAT32_LIMIT), "bfloat16": Limit("whole", 0.1)}


@dataclass(frozen=True)
class GradientError:
    """One parameter's gradient."""

    name: str  # as published
    layer: int | None  # None: embedding and final norm
    error: TensorError
    norm: float  # of PyTorch's


class Worst(NamedTuple):
    """A layer's largest error."""

    layer: int | None
    parameters: int
    max: float
    mean: float
    name: str  # whose max it is


@dataclass(frozen=True)
class GradientComparison:
    """Everything `mobilemoe compare --backward` prints and writes."""

    checkpoint: str
    mlx_dtype: str
    torch_dtype: str
    quantize: bool
    capacity_factor: float | None  # None: dropless
    dropped: float  # share of the chosen experts that had no room, in PyTorch
    tokens: int
    mlx_loss: float  # mean cross-entropy, nats
    torch_loss: float
    parameters: tuple[GradientError, ...]  # the largest error first
    whole: float  # of all gradients as one vector: ||MLX - PyTorch|| / ||PyTorch||
    tolerance: Limit
    versions: dict[str, str]

    @property
    def judged(self) -> float:
        """The value of the measure that the tolerance is about; NaN where one is not finite."""
        errors = [p.error.max for p in self.parameters]
        if any(math.isnan(error) for error in errors):
            return math.nan
        return self.whole if self.tolerance.measure == "whole" else max(errors)

    @property
    def passed(self) -> bool:
        """Whether all is finite, and within the tolerance."""
        return self.judged <= self.tolerance.value

    def layers(self) -> list[Worst]:
        """Each layer's worst, in the order of the model; what belongs to no layer comes last."""
        out = []
        numbers = {p.layer for p in self.parameters}
        for layer in sorted(numbers, key=lambda n: (n is None, n)):
            own = [p for p in self.parameters if p.layer == layer]
            worst = max(own, key=lambda p: p.error.max)
            mean = max(p.error.mean for p in own)
            out.append(Worst(layer, len(own), worst.error.max, mean, worst.name))
        return out

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        content = dataclasses.asdict(self)
        content |= {"tolerance": self.tolerance._asdict(), "passed": self.passed}
        content["layers"] = [worst._asdict() for worst in self.layers()]
        return dict(json_values(content))

    def write(self, folder: Path) -> None:
        """Write gradients.json and gradients.png into `folder`, creating it: both or none."""
        from mobilemoe_mlx.compare.training_pictures import draw_gradients  # matplotlib

        record = files.json_text(self.to_dict()).encode()
        write_together(folder, {"gradients.json": record, "gradients.png": draw_gradients(self)})


def compare_gradients(
    folder: Path,
    tokens: list[int],
    *,
    dtype: TrainingType = "float32",
    torch_dtype: TrainingType | None = None,
    quantize: bool = False,
    capacity_factor: float | None = None,
    tolerance: float | None = None,
) -> GradientComparison:
    """The gradients of next-token prediction on one sequence of two or more tokens.

    The loss is training's: mean cross-entropy plus the router's z-loss. Master weights are float32,
    used in `dtype` (PyTorch: `torch_dtype`, by default the same); INT4 checkpoints are expanded.
    `quantize`: the forward pass rounds them to INT4, and gradients pass straight (QAT).
    `capacity_factor`: see RoutingConfig.
    """
    torch_dtype = torch_dtype or dtype
    sequence = np.array([tokens])
    # One after the other: only one copy of the weights is in memory.
    mlx_loss, measured = gradients(folder, sequence, dtype, quantize, capacity_factor)
    torch_loss, dropped, reference = _torch_gradients(
        folder, sequence, torch_dtype, quantize, capacity_factor
    )
    coarser = "bfloat16" if "bfloat16" in (dtype, torch_dtype) else "float32"
    limit = GRADIENT_LIMITS[coarser]
    rows = [
        GradientError(name, _layer(name), _error(measured[name], wanted), _norm(wanted))
        for name, wanted in reference.items()
    ]
    difference = math.hypot(*(_norm(measured[n] - wanted) for n, wanted in reference.items()))
    return GradientComparison(
        checkpoint=str(folder),
        mlx_dtype=dtype,
        torch_dtype=torch_dtype,
        quantize=quantize,
        capacity_factor=capacity_factor,
        dropped=dropped,
        tokens=len(tokens) - 1,
        mlx_loss=mlx_loss,
        torch_loss=torch_loss,
        parameters=tuple(sorted(rows, key=lambda row: _order(row.error.max), reverse=True)),
        whole=difference / math.hypot(*(row.norm for row in rows)),
        tolerance=limit if tolerance is None else limit._replace(value=tolerance),
        versions=versions("mlx", "torch"),
    )


def _torch_gradients(
    folder: Path,
    tokens: np.ndarray,
    dtype: TrainingType,
    quantize: bool,
    capacity_factor: float | None,
) -> tuple[float, float, dict[str, np.ndarray]]:
    """The cross-entropy, the share of choices without room, and the gradients."""
    model = load_torch_model(folder).train()
    model.limit_capacity(capacity_factor)
    for _, parameter in trained(model):
        parameter.requires_grad_(True)
    loss = training_loss(
        model,
        torch.from_numpy(tokens),
        z_loss=RoutingConfig().z_loss,
        dtype=DTYPES[dtype],
        quantize=quantize,
    )
    loss.objective.backward()
    # An expert that no token chose has no gradient, which is one of zeros.
    found = {
        name: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
        for name, p in trained(model)
    }
    return loss.cross_entropy, loss.output.dropped, found


def _error(measured: np.ndarray, reference: np.ndarray) -> TensorError:
    columns = reference.shape[-1]
    return TensorError.between(measured.reshape(-1, columns), reference.reshape(-1, columns))


def _norm(array: np.ndarray) -> float:
    return math.sqrt(float(np.einsum("i,i->", array.ravel(), array.ravel(), dtype=np.float64)))


def _order(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _layer(name: str) -> int | None:
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None
