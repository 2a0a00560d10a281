"""MobileMoE in MLX: load, run, train and compare Meta's on-device Mixture-of-Experts models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mobilemoe_mlx.errors import UserError

if TYPE_CHECKING:
    from mobilemoe_mlx.checkpoint.load_save import load, save
    from mobilemoe_mlx.config import ModelArgs
    from mobilemoe_mlx.model import Model

__all__ = ["Model", "ModelArgs", "UserError", "load", "save"]

# Imported when first asked for: MLX and mlx-lm take seconds to import, and the command line has
# to prepare a Linux machine before they are.
_HOMES = {
    "load": "mobilemoe_mlx.checkpoint.load_save",
    "save": "mobilemoe_mlx.checkpoint.load_save",
    "Model": "mobilemoe_mlx.model",
    "ModelArgs": "mobilemoe_mlx.config",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
