"""Engines run a checkpoint: one interface to prefill and decode, one file per engine.

    engine = open_engine("facebook/MobileMoE-S-QAT", "cpu", precision="exact", threads=2)
    session = engine.session(context=4096)
    logits = session.feed([128000, 9906])  # float32 [1, vocabulary]

A folder needs no tokenizer for this. `generate` and `chat` make text with a session.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.hub import resolve
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.config import ModelArgs, read_config
from mobilemoe_mlx.cpu_kernel import library
from mobilemoe_mlx.engines.engine import Engine, Session
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.onnx_folder.extra import need
from mobilemoe_mlx.onnx_folder.folder import is_onnx_folder, open_onnx_folder

__all__ = ["ENGINES", "Engine", "Session", "open_engine"]

# Name -> (module, class); a module is imported when its engine is opened.
ENGINES = {
    "cpu": ("mobilemoe_mlx.engines.cpu", "CPUEngine"),
    "mlx": ("mobilemoe_mlx.engines.mlx", "MLXEngine"),
    "onnx": ("mobilemoe_mlx.engines.onnx", "ONNXEngine"),
}


# What to do for an option that only the CPU engine has.
_WHAT_CPU_NEEDS = (
    " The engine 'cpu' has it, for INT4 checkpoints: round one with mobilemoe convert --quantize, "
    "and fuse adapters with mobilemoe fuse --to int4."
)


def open_engine(folder: str | Path, name: str | None = None, **options: Any) -> Engine:
    """Open a model with the engine `name`: a checkpoint folder, a Hugging Face repository (which
    is downloaded), or for the engine "onnx" a folder that `mobilemoe export onnx` wrote.

    `name`: a key of ENGINES; None: see `default_engine`. `options` are the engine's own: see its
    `open`; those that are None are left to it. Raises UserError for an unknown engine or
    option, for an engine that is not installed, and for all that is wrong with the folder.
    """
    folder = resolve(folder)
    options = {option: value for option, value in options.items() if value is not None}
    why = ""
    if name is None:
        with_adapters = bool(options.get("adapters"))
        name = default_engine(folder, with_adapters)
        why = ", which runs this checkpoint" + (
            " with adapters" if with_adapters and name == "mlx" else ""
        )
    if name not in ENGINES:
        raise UserError(
            f"There is no engine '{name}'{did_you_mean(name, ENGINES)}. "
            f"Engines: {', '.join(ENGINES)}."
        )
    if name != "onnx" and is_onnx_folder(folder):
        raise UserError(f"{folder} is an ONNX export: run it with the engine 'onnx'.")
    engine = _engine(name)
    known = _options(engine)
    for option in options:
        if option not in known:
            raise UserError(
                f"The engine '{name}'{why} has no option '{option}'{did_you_mean(option, known)}."
                + (_WHAT_CPU_NEEDS if option in _options(_engine("cpu")) else "")
            )
    return engine.open(folder, **options)


def model_args(folder: Path) -> ModelArgs:
    """The configuration of a checkpoint folder or an ONNX export, whose context is its own.

    Raises UserError for all that is wrong with a checkpoint's headers or an export's files.
    """
    if not is_onnx_folder(folder):
        return open_checkpoint(folder).args
    args = ModelArgs.from_dict(read_config(folder))
    return dataclasses.replace(args, max_position_embeddings=open_onnx_folder(folder).context)


def _engine(name: str) -> type[Engine]:
    module, cls = ENGINES[name]
    if name == "onnx":
        need("onnx", "onnxruntime")
    try:
        engine: type[Engine] = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        raise UserError(f"The engine '{name}' is not installed: {error}.") from error
    return engine


def _options(engine: type[Engine]) -> list[str]:
    return [*inspect.signature(engine.open).parameters][1:]


def default_engine(folder: Path, with_adapters: bool = False) -> str:
    """The engine of a folder where nobody chooses one.

    "onnx" for an ONNX export. Of checkpoints "mlx" with adapters; without them "cpu" for INT4 on
    Linux, where MLX's own INT4 product is slow, if the kernel is built; else "mlx". Raises
    UserError for all that is wrong with the folder's headers.
    """
    if is_onnx_folder(folder):
        return "onnx"
    if with_adapters or sys.platform != "linux" or not library.is_built():
        return "mlx"
    return "mlx" if open_checkpoint(folder).layout is Layout.FLOAT else "cpu"
