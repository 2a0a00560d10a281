"""Open a model to be scored, with the scorer that suits its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobilemoe_mlx.engines.mlx import MLXEngine
from mobilemoe_mlx.evaluation.mlx_scorer import MLXScorer
from mobilemoe_mlx.evaluation.scorer import Scorer
from mobilemoe_mlx.evaluation.session_scorer import SessionScorer
from mobilemoe_mlx.generate import open_with_tokenizer


def open_scorer(path_or_repo: str | Path, engine: str | None = None, **options: Any) -> Scorer:
    """Open a checkpoint of either layout, a converted folder, or an ONNX export.

    `engine` and `options`: see `engines.open_engine`. Raises UserError for all that is wrong with
    them.
    """
    opened, tokenizer = open_with_tokenizer(path_or_repo, engine, **options)
    if isinstance(opened, MLXEngine):
        return MLXScorer(opened, tokenizer)
    return SessionScorer(opened, tokenizer)
