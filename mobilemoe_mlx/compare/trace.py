"""Run a checkpoint in MLX and in PyTorch, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mobilemoe_mlx.adapters.load import load_adapted
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.compare.torch_model import TorchMobileMoE
from mobilemoe_mlx.numerics.values import LayerValues, Trace, trace_mlx

import torch  # isort: skip  (after torch_model, which explains a missing PyTorch)


def trace_torch(model: TorchMobileMoE, tokens: list[int]) -> Trace:
    """Run the PyTorch reference on one sequence."""
    with torch.no_grad():
        output = model(torch.tensor([tokens]))
    layers = [
        LayerValues(hidden[0].float().numpy(), routing.biased.numpy(), routing.experts.numpy())
        for hidden, routing in zip(output.hidden, output.routing, strict=True)
    ]
    return Trace(layers, output.logits[0].float().numpy())


def load_and_trace_mlx(
    folder: Path, adapters: Sequence[tuple[Path, float]], dtype: str, tokens: list[int]
) -> Trace:
    """Load with the package's own loader, run, and let go of the weights."""
    return trace_mlx(load_adapted(folder, adapters, getattr(mx, dtype)), tokens)


def load_and_trace_torch(
    folder: Path, adapters: Sequence[tuple[Path, float]], dtype: str, tokens: list[int]
) -> Trace:
    """Load with the reference's own loader, run, and let go of the weights."""
    return trace_torch(load_torch_model(folder, dtype, adapters), tokens)
