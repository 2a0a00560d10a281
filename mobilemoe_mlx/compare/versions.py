"""What computed a comparison: versions and MLX's device."""

from __future__ import annotations

import importlib.metadata

import mlx.core as mx


def versions() -> dict[str, str]:
    """For reports."""
    return {
        "mlx": importlib.metadata.version("mlx"),
        "mlx device": str(mx.default_device().type).rpartition(".")[-1],
        "torch": importlib.metadata.version("torch"),
    }
