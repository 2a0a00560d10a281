"""A checkpoint in the PyTorch reference, as one side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobilemoe_mlx.adapters.adapter_file import read_adapter
from mobilemoe_mlx.compare.sequence import open_for_torch
from mobilemoe_mlx.compare.side import Run, Side
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.compare.torch_model import TorchMobileMoE
from mobilemoe_mlx.engines.engine import Adapters
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.numerics.tolerance import COMPARE_LIMITS
from mobilemoe_mlx.numerics.values import LayerValues, Trace

import torch  # isort: skip  (after torch_model, which explains a missing PyTorch)


def torch_side(folder: Path, dtype: str, adapters: Adapters) -> Side:
    """`dtype`: a key of COMPARE_LIMITS. The folder and adapters are read by code of its own.

    Raises UserError for a layout that is not read, and for adapters trained through INT4, since
    what they are for is the fused checkpoint.
    """
    checkpoint = open_for_torch(folder)
    for path, _ in adapters:
        if read_adapter(path).through_int4:
            raise UserError(
                f"The adapter {path} was trained through INT4: fuse it, and compare what comes out "
                f"(mobilemoe fuse {folder} {path} OUTPUT)."
            )
    return Side(
        folder=folder,
        engine="torch",
        precision=dtype,
        label=f"PyTorch {dtype}",
        args=checkpoint.args,
        context=checkpoint.args.max_position_embeddings,
        limit=COMPARE_LIMITS[dtype],
        tokenizer=folder,
        packages=("torch",),
        load=lambda: TorchRun(load_torch_model(folder, dtype, adapters)),
        checkpoint=checkpoint,
        has_cache=False,
    )


class TorchRun(Run):
    """The reference, which computes the whole sequence each time."""

    def __init__(self, model: TorchMobileMoE) -> None:
        self._model = model
        self._tokens: list[int] = []

    def start(self, tokens: list[int]) -> Trace:
        """Compute a sequence; all of every layer is shown."""
        self._tokens = list(tokens)
        return trace_torch(self._model, tokens)

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens."""
        self._tokens += tokens
        return trace_torch(self._model, self._tokens).logits[-len(tokens) :]


def trace_torch(model: TorchMobileMoE, tokens: list[int]) -> Trace:
    """Run the PyTorch reference on one sequence."""
    with torch.no_grad():
        output = model(torch.tensor([tokens]))
    layers = [
        LayerValues(hidden[0].float().numpy(), routing.biased.numpy(), routing.experts.numpy())
        for hidden, routing in zip(output.hidden, output.routing, strict=True)
    ]
    return Trace(layers, output.logits[0].float().numpy())
