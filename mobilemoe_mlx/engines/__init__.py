"""Engines run a checkpoint: one interface to prefill and decode, one file per engine.

    engine = open_engine("facebook/MobileMoE-S-QAT", "mlx")
    session = engine.session(context=4096)
    logits = session.feed([128000, 9906])  # float32 [1, vocabulary]

A folder needs no tokenizer for this. `generate` and `chat` make text with a session.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from mobilemoe_mlx.checkpoint.hub import resolve
from mobilemoe_mlx.engines.engine import Engine, Session
from mobilemoe_mlx.errors import UserError, did_you_mean

__all__ = ["ENGINES", "Engine", "Session", "open_engine"]

# Name -> (module, class); a module is imported when its engine is opened.
ENGINES = {"mlx": ("mobilemoe_mlx.engines.mlx", "MLXEngine")}


def open_engine(folder: str | Path, name: str = "mlx", **options: Any) -> Engine:
    """Open a checkpoint folder (or download a Hugging Face repository) with the engine `name`.

    `options` are the engine's own: see its `open`. Raises UserError for an unknown engine or
    option, for an engine that is not installed, and for all that is wrong with the folder.
    """
    if name not in ENGINES:
        raise UserError(
            f"There is no engine '{name}'{did_you_mean(name, ENGINES)}. "
            f"Engines: {', '.join(ENGINES)}."
        )
    module, cls = ENGINES[name]
    try:
        engine: type[Engine] = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        raise UserError(f"The engine '{name}' is not installed: {error}.") from error
    known = [*inspect.signature(engine.open).parameters][1:]
    for option in options:
        if option not in known:
            raise UserError(
                f"The engine '{name}' has no option '{option}'{did_you_mean(option, known)}."
            )
    return engine.open(resolve(folder), **options)
