"""Who takes part: engines and their rivals, and the process of each."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.config import GROUP_SIZE, ModelArgs
from mobilemoe_mlx.cpu_kernel import library
from mobilemoe_mlx.engines import ENGINES
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.onnx_folder.folder import is_onnx_folder

RIVALS = ("torch", "llama.cpp")
_HERE = Path(__file__).parent
# The fields of config.json that llama_cpp_rival.py reads, which imports nothing of this package.
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
    "intermediate_size",
    "intermediate_size_mlp",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Contender:
    """An engine, or a rival, and the command that starts its process (`worker.py`)."""

    name: str
    command: tuple[str, ...]
    is_rival: bool = False
    # Whether each token takes as long as the whole text before it.
    recomputes: bool = False
    # Whether decoding a token reads as many bytes of weights as an engine's.
    reads_int4: bool = True


def engines(
    folder: Path,
    args: ModelArgs,
    names: Sequence[str],
    threads: int,
    expert_memory: int | None = None,
) -> list[Contender]:
    """Those that `names` ask for, "cpu:int8", say; without names all that can run here.

    "onnx:EXPORT" is an ONNX folder of the same model, and "onnx" the one that `folder` is.
    `expert_memory`: of the CPU engine; all that can run are then its precisions. Raises UserError
    for an engine or precision that there is not.
    """
    if not names and is_onnx_folder(folder):
        names = ["onnx"]
    if not names:
        on_cpu = [f"cpu:{name}" for name in ("int8", "int16", "exact")]
        names = [*on_cpu, "mlx"] if args.quantized and library.is_built() else ["mlx"]
        if expert_memory is not None:
            names = on_cpu
    found = []
    for name in names:
        engine, _, precision = name.partition(":")
        place = folder
        if engine == "onnx" and precision and is_onnx_folder(export := files.user_path(precision)):
            place, precision = export, ""
        if engine in RIVALS:
            raise UserError(f"{engine} is no engine but a rival: --rivals {engine}.")
        if engine not in ENGINES:
            raise UserError(f"There is no engine '{engine}'{did_you_mean(engine, ENGINES)}.")
        options: dict[str, Any] = {"threads": threads} if engine != "mlx" else {}
        if expert_memory is not None:
            options["expert_memory"] = expert_memory
        if precision:
            options["precision"] = precision
        asked = {"folder": str(place), "engine": engine, "options": options}
        command = (sys.executable, "-m", "mobilemoe_mlx.bench.worker", json.dumps(asked))
        found.append(Contender(name, command))
    return found


def rival(
    name: str, folder: Path, args: ModelArgs, threads: int, context: int, llama_python: str | None
) -> Contender:
    """A rival of the engines on the checkpoint in `folder`, with room for `context` tokens.

    "torch": the PyTorch reference of `compare`, same checkpoint, float32, without a cache.
    "llama.cpp": a random model of the same sizes, in `llama_python` (None: this Python). Raises
    UserError for another name, and for what is not installed.
    """
    if name == "torch":
        if importlib.util.find_spec("torch") is None:
            raise UserError(
                "The rival torch needs PyTorch: install it from the mobilemoe-mlx checkout, "
                "pip install --editable '.[torch]'"
            )
        asked = {"folder": str(folder), "threads": threads}
        module = "mobilemoe_mlx.bench.torch_rival"
        command: tuple[str, ...] = (sys.executable, "-m", module, json.dumps(asked))
        return Contender(name, command, is_rival=True, recomputes=True, reads_int4=False)
    if name == "llama.cpp":
        command = llama_cpp_command(llama_cpp_shape(args), threads, context, llama_python)
        return Contender(name, command, is_rival=True)
    raise UserError(
        f"There is no rival '{name}'{did_you_mean(name, RIVALS)}. Rivals: {', '.join(RIVALS)}."
    )


def llama_cpp_command(
    shape: dict[str, int], threads: int, context: int, python: str | None
) -> tuple[str, ...]:
    """The command of llama.cpp's process; raises UserError where `python` lacks a package."""
    program = sys.executable if python is None else shutil.which(python)
    if program is None:
        raise UserError(f"There is no program {python} (--llama-python).")
    if not _is_python(program):
        raise UserError(f"{program} is no Python (--llama-python): give one, as VENV/bin/python.")
    code = "import gguf, llama_cpp, numpy"
    found = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or [f"status {found.returncode}"])[-1]
        raise UserError(
            "The rival llama.cpp needs llama-cpp-python and gguf, here (`pip install "
            "llama-cpp-python gguf`) or in another environment, whose Python --llama-python "
            f"names. {program} says: {reason}"
        )
    asked = {"shape": shape, "threads": threads, "context": context}
    return (program, str(_HERE / "llama_cpp_rival.py"), json.dumps(asked))


def _is_python(program: str) -> bool:
    """Whether it computes what Python would."""
    command = [program, "-c", "print(6 * 7)"]
    try:
        found = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.stdout.strip() == b"42"


def llama_cpp_shape(args: ModelArgs) -> dict[str, int]:
    """The sizes of `args` that the random GGUF takes; raises UserError for what it cannot take."""
    args.check_routed_and_shared("llama.cpp's nearest architecture")
    if args.query_dim != args.hidden_size:
        raise UserError(
            "llama.cpp's nearest architecture needs num_attention_heads x head_dim = hidden_size, "
            f"and this checkpoint has {args.query_dim} and {args.hidden_size}: leave out the rival."
        )
    for name in ("hidden_size", "intermediate_size", "intermediate_size_mlp"):
        if getattr(args, name) % GROUP_SIZE:
            raise UserError(
                f"llama.cpp's Q4_0 needs sizes that are multiples of {GROUP_SIZE}, and {name} is "
                f"{getattr(args, name)}: leave out the rival."
            )
    return {name: getattr(args, name) for name in _SHAPE}
