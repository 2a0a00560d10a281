"""A checkpoint in MLX, as one side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.adapters.load import load_adapted
from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.compare.side import Run, Side
from mobilemoe_mlx.engines.engine import Adapters
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import COMPARE_LIMITS
from mobilemoe_mlx.numerics.values import Trace, trace_mlx


def mlx_side(folder: Path, dtype: str, adapters: Adapters) -> Side:
    """`dtype`: a key of COMPARE_LIMITS. Raises UserError for what is wrong with the folder."""
    checkpoint = open_checkpoint(folder)
    return Side(
        folder=folder,
        engine="mlx",
        precision=dtype,
        label=f"MLX {dtype}",
        args=checkpoint.args,
        context=checkpoint.args.max_position_embeddings,
        limit=COMPARE_LIMITS[dtype],
        tokenizer=folder,
        packages=("mlx",),
        load=lambda: MLXRun(load_adapted(folder, adapters, getattr(mx, dtype))),
        checkpoint=checkpoint,
    )


class MLXRun(Run):
    """A model of this package."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cache: list[Any] = model.make_cache()

    def start(self, tokens: list[int]) -> Trace:
        """Compute a sequence; all of every layer is shown."""
        return trace_mlx(self._model, tokens, cache=self._cache)

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens, one at a time."""
        rows = [self._model(mx.array([[token]]), self._cache)[0] for token in tokens]
        return np.array(mx.concatenate(rows).astype(mx.float32))
