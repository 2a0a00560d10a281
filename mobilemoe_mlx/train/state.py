"""Training checkpoints: everything a stage needs to go on as if nothing had happened.

A checkpoint is a folder `step-NNNNNNNN`: weights.safetensors (float32 masters, biases),
optimizer.safetensors, state.json (step, data position, counters). It is written beside its final
name, flushed to the disk and renamed, so that a folder with the final name is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train.step import Trainer

_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}\d{{8,}}")
_TEMPORARY = ".writing-"


def save(folder: Path, trainer: Trainer, extra: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of the trainer's step into `folder`; keep the newest `keep`.

    `extra`: JSON-serialisable (data position, token counts). Raises UserError when the disk is
    full or cannot be written; earlier checkpoints are untouched then.
    """
    target = folder / f"{_PREFIX}{trainer.step:08d}"
    temporary = folder / f"{_TEMPORARY}{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_arrays(temporary / "weights.safetensors", trainer.all_parameters())
        _write_arrays(temporary / "optimizer.safetensors", trainer.optimizer.state)
        state = {
            "step": trainer.step,
            "random_state": np.array(mx.random.state[0]).tolist(),
            **extra,
        }
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for file in temporary.iterdir():
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        last = latest(folder)
        raise UserError(
            f"Could not write the checkpoint {target}: {error}. "
            + (f"The last one is intact: {last}." if last else "There is no earlier one.")
        ) from error
    for old in all_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest(folder: Path, before: int | None = None) -> Path | None:
    """The newest complete checkpoint in `folder` (of a step below `before`), if there is one."""
    complete = all_checkpoints(folder)
    if before is not None:
        complete = [path for path in complete if step_of(path) < before]
    return complete[-1] if complete else None


def load(checkpoint: Path, trainer: Trainer) -> dict[str, Any]:
    """Put a checkpoint's state into `trainer`; returns what `extra` held."""
    trainer.adopt(load_parameters(checkpoint))
    try:
        trainer.optimizer.state = _read_arrays(checkpoint / "optimizer.safetensors")
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        trainer.step, random_state = state.pop("step"), state.pop("random_state")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(checkpoint, error) from error
    high, low = random_state
    mx.random.seed(high << 32 | low)  # MLX's key is the seed's two halves, and cannot be assigned
    return state


def load_parameters(checkpoint: Path) -> dict[str, Any]:
    """The float32 parameter tree of a checkpoint (master weights and biases)."""
    try:
        return _read_arrays(checkpoint / "weights.safetensors")
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Path, error: Exception) -> UserError:
    return UserError(f"The checkpoint {checkpoint} is damaged ({error}): delete it and resume.")


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def all_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    found = (path for path in folder.glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name))
    return sorted((path for path in found if path.is_dir()), key=step_of)


def _write_arrays(path: Path, tree: Any) -> None:
    # safetensors' own writer, since it reports a full disk.
    save_file({name: np.asarray(value) for name, value in tree_flatten(tree)}, path)


def _read_arrays(path: Path) -> Any:
    return tree_unflatten([(name, mx.array(value)) for name, value in load_file(path).items()])


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
