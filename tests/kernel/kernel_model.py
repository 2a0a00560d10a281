"""A published INT4 folder read by other code than the package's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from mobilemoe_mlx.config import ModelArgs, read_config


def read_folder(folder: Path) -> tuple[ModelArgs, dict[str, np.ndarray]]:
    """Configuration and tensors; bfloat16 as the uint16 that it lies in."""
    tensors = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            tensor = file.get_tensor(name)
            narrow = tensor.dtype == torch.bfloat16
            tensors[name] = (tensor.view(torch.uint16) if narrow else tensor).numpy()
    return ModelArgs.from_dict(read_config(folder)), tensors
