"""A small INT4 checkpoint whose greedy texts vary, unlike those of a model with random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoint_files

from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.config import ModelArgs

# Random layers add little to the residual stream, and a tied head then repeats the last token.
_LOUDER = 8


def write_varied(
    folder: Path,
    args: ModelArgs,
    tokenizer: Path | None = None,
    edit: Callable[[checkpoint_files.Tensors], None] = lambda tensors: None,
) -> Path:
    """`edit` changes the tensors; `tokenizer`: a folder whose files are copied."""
    source = folder.with_name(f"{folder.name}-random")
    write_random_checkpoint(source, args, seed=3, quantized=True)
    tensors = checkpoint_files.read(source)
    for name, tensor in tensors.items():
        if name.startswith("model.layers.") and name.endswith("scale"):
            tensors[name] = tensor * _LOUDER
    edit(tensors)
    checkpoint_files.write(folder, tensors, open_checkpoint(source).args)
    shutil.rmtree(source)
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder
