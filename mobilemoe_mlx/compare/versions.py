"""What computed a comparison: versions and MLX's device."""

from __future__ import annotations

import importlib.metadata

import mlx.core as mx


def versions(*packages: str) -> dict[str, str]:
    """For reports: of each package that is installed (a checkout on the path need not be)."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if package == "mlx":
            found["mlx device"] = str(mx.default_device().type).rpartition(".")[-1]
    return found
