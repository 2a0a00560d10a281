"""`--engine`, `--adapter` and the options of engines, for each command that runs a model."""

from __future__ import annotations

import argparse
from typing import Any

from mobilemoe_mlx.cli.adapter_argument import adapters, add_adapter_argument
from mobilemoe_mlx.cli.sizes import byte_size


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="cpu, mlx or onnx (default: onnx for an ONNX export, cpu for INT4 checkpoints on "
        "Linux without adapters, else mlx)",
    )
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="of the engine cpu and of fused ONNX folders: exact, int16 (default, near exact) or "
        "int8 (fastest)",
    )
    parser.add_argument(
        "--threads", type=int, help="of the engines cpu and onnx: 1 to 16 (default: one per CPU)"
    )
    add_expert_memory_argument(parser)
    add_adapter_argument(parser)


def add_expert_memory_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--expert-memory` alone."""
    parser.add_argument(
        "--expert-memory",
        type=byte_size,
        metavar="SIZE",
        help="of the engine cpu: keep so much of the routed experts in memory, like 300MB, and "
        "read the others from the file when they are needed (default: all are mapped)",
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as keyword arguments of `open_with_tokenizer`; None: not asked for."""
    names = ("engine", "precision", "threads", "expert_memory")
    return {**{name: getattr(args, name) for name in names}, "adapters": adapters(args) or None}
