"""Training checkpoints: everything a stage needs to go on as if nothing had happened.

A checkpoint is a folder `step-NNNNNNNN`: weights.safetensors (float32 masters, biases),
optimizer.safetensors, state.json (step, data position, counters). It is written beside its final
name, flushed to the disk and renamed, so that a folder with the final name is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from mobilemoe_mlx.errors import UserError

if TYPE_CHECKING:
    from mobilemoe_mlx.train.step import Trainer

_PREFIX = "step-"
_NAME = re.compile(rf"{_PREFIX}\d{{8,}}")
_TEMPORARY = ".writing-"
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def save(
    folder: Path, trainer: Trainer, extra: dict[str, Any], keep: int, best: int | None = None
) -> Path:
    """Write the checkpoint of the trainer's step into `folder`.

    The newest `keep` are kept, and that of the step `best`. `extra`: JSON-serialisable (data
    position, token counts). Raises UserError when the disk is full or cannot be written; earlier
    checkpoints are untouched then.
    """
    target = of_step(folder, trainer.step)
    temporary = folder / f"{_TEMPORARY}{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write_arrays(temporary / _WEIGHTS, trainer.trained_parameters())
        _write_arrays(temporary / _OPTIMIZER, trainer.optimizer.state)
        state = {
            "step": trainer.step,
            "random_state": np.array(mx.random.state[0]).tolist(),
            **extra,
        }
        (temporary / _STATE).write_text(json.dumps(state), encoding="utf-8")
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
        if step_of(old) != best:
            shutil.rmtree(old)
    return target


def of_step(folder: Path, step: int) -> Path:
    """The checkpoint of a step in `folder`, which `save` was told to keep."""
    return folder / f"{_PREFIX}{step:08d}"


def latest(folder: Path, before: int | None = None) -> Path | None:
    """The newest complete checkpoint in `folder` (of a step below `before`), if there is one."""
    complete = all_checkpoints(folder)
    if before is not None:
        complete = [path for path in complete if step_of(path) < before]
    return complete[-1] if complete else None


def load(checkpoint: Path, trainer: Trainer) -> dict[str, Any]:
    """Put a checkpoint's state into `trainer`; returns what `extra` held.

    Raises UserError for a damaged checkpoint, and for one of another model.
    """
    trainer.adopt(load_parameters(checkpoint, trainer.trained_parameters()))
    with refused_if_damaged(checkpoint):
        optimizer = _read_arrays(checkpoint / _OPTIMIZER)
        _check_same_tensors(optimizer, trainer.optimizer.state)
        trainer.optimizer.state = optimizer
        state = _read_state(checkpoint)
        trainer.step, (high, low) = state.pop("step"), state.pop("random_state")
        # MLX's key is the seed's two halves, and cannot be assigned.
        mx.random.seed(high << 32 | low)
    return state


def read_extra(checkpoint: Path) -> dict[str, Any]:
    """What `extra` held when a checkpoint was saved, of one that `load` can be expected to read.

    Its tensors are not read. Raises UserError for a damaged checkpoint.
    """
    with refused_if_damaged(checkpoint):
        for name in (_WEIGHTS, _OPTIMIZER):
            with safe_open(checkpoint / name, "np"):  # checks the header and the file's size
                pass
        state = _read_state(checkpoint)
        del state["step"], state["random_state"]
    return state


def load_parameters(checkpoint: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The float32 parameter tree of a checkpoint (master weights and biases), all finite.

    Raises UserError where its names and shapes are not those of the tree `like`.
    """
    with refused_if_damaged(checkpoint):
        parameters: dict[str, Any] = _read_arrays(checkpoint / _WEIGHTS)
        _check_same_tensors(parameters, like)
        for name, value in tree_flatten(parameters):
            if not mx.isfinite(value).all().item():
                raise ValueError(f"{name} has values that are not finite")
        return parameters


@contextlib.contextmanager
def refused_if_damaged(checkpoint: Path) -> Iterator[None]:
    """Turn what reading a damaged checkpoint raises into one UserError."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"The checkpoint {checkpoint} is damaged ({why}): delete it and resume."
        ) from error


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


def _check_same_tensors(found: Any, wanted: Any) -> None:
    """Raise ValueError where two trees differ in names or shapes."""
    shapes = {name: value.shape for name, value in tree_flatten(found)}
    for name, value in tree_flatten(wanted):
        if name not in shapes:
            raise ValueError(f"it has no {name}")
        if (shape := shapes.pop(name)) != value.shape:
            raise ValueError(f"{name} is {list(shape)}, the model's is {list(value.shape)}")
    if shapes:
        raise ValueError(f"the model has no {next(iter(shapes))}")


def _read_state(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
