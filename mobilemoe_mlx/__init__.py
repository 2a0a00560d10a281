"""MobileMoE in MLX: load, run, train and compare Meta's on-device Mixture-of-Experts models."""

from __future__ import annotations

from mobilemoe_mlx.checkpoint.load_save import load, save
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model, ModelArgs

__all__ = ["Model", "ModelArgs", "UserError", "load", "save"]
