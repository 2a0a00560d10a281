"""A checkpoint in the CPU engine, as one side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.compare.side import Run, Side
from mobilemoe_mlx.engines.cpu import CPUEngine
from mobilemoe_mlx.engines.engine import PREFILL_TOKENS, Adapters
from mobilemoe_mlx.numerics.tolerance import Arithmetic, limit
from mobilemoe_mlx.numerics.values import PartialLayer, PartialTrace

# How each precision rounds, and so how far it may be off. ("int16" rounds activations finer than
# float16 does, and keeps keys and values in float16.)
ARITHMETIC: dict[str, Arithmetic] = {"exact": "float32", "int16": "declared", "int8": "int8"}


def cpu_side(folder: Path, precision: str, adapters: Adapters) -> Side:
    """`precision`: a key of ARITHMETIC. Raises UserError as `CPUEngine.open` does."""
    engine = CPUEngine.open(folder, precision=precision, adapters=adapters)
    return Side(
        folder=folder,
        engine="cpu",
        precision=precision,
        label=f"CPU engine {precision}",
        args=engine.args,
        context=engine.args.max_position_embeddings,
        limit=limit(ARITHMETIC[precision], engine.args.num_hidden_layers),
        tokenizer=folder,
        packages=("mobilemoe-mlx",),
        load=lambda: CPURun(engine),
        checkpoint=open_checkpoint(folder),
    )


class CPURun(Run):
    """A session of the kernel, which tells the experts that it chose."""

    def __init__(self, engine: CPUEngine) -> None:
        self._session = engine.session()

    def start(self, tokens: list[int]) -> PartialTrace:
        """Compute a sequence; of layers the chosen experts are shown."""
        logits, experts = [], []
        for start in range(0, len(tokens), PREFILL_TOKENS):
            lot = tokens[start : start + PREFILL_TOKENS]
            logits.append(self._session.feed(lot, all_logits=True))
            experts.append(self._session.experts(len(lot)))
        layers = [PartialLayer(None, None, each) for each in np.concatenate(experts, axis=1)]
        return PartialTrace(layers, np.concatenate(logits))

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens, one at a time."""
        return np.concatenate([self._session.feed([token]) for token in tokens])
