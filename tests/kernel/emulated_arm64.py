"""The kernel's operators on an emulated arm64 CPU, called as those of kernel_library.py are."""

from __future__ import annotations

import ctypes as c
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kernel_programs
import numpy as np
import pytest
from kernel_library import AttentionShape, MoeShape

from mobilemoe_mlx.cpu_kernel.structures import Int4, MoeWeights, Tensor

CPU_PATHS = ("neon", "neondot", "neoni8mm")
HERE = Path(__file__).parent
# As operator_server.cpp has them.
OPERATORS = ("linear", "rms_norm", "head", "attention", "moe_ffn")
PRECISIONS = ("exact", "int16", "int8")


def build(folder: Path, program: str, more: Sequence[Path] = ()) -> list[str]:
    """Cross-compile a program of this folder over the kernel and `more`; -> a command that runs it.

    Skips the test where there is no cross compiler or no emulator.
    """
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no cross compiler or emulator for arm64: scripts/install-cross-tools")
    options = ["-O2", "-Wall", "-Wextra", "-Werror"]
    built = kernel_programs.build(folder, compiler, HERE / program, options, ["-static"], more)
    return [emulator, str(built)]


class Server:
    """A process in the emulator that computes operators with one code path."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(self, header: bytes, arrays: list[bytes]) -> np.ndarray:
        assert self.process.stdin is not None and self.process.stdout is not None
        parts = [header, struct.pack("<i", len(arrays))]
        for array in arrays:
            parts += [struct.pack("<q", len(array)), array]
        self.process.stdin.write(b"".join(parts))
        self.process.stdin.flush()
        size = self.process.stdout.read(8)
        assert len(size) == 8, "the program in the emulator ended; it printed why"
        return np.frombuffer(self.process.stdout.read(*struct.unpack("<q", size)), np.float32)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class EmulatedRuntime:
    """The operators of kernel_library.Runtime."""

    def __init__(self, server: Server, precision: str, threads: int) -> None:
        self.server = server
        self.precision, self.threads = PRECISIONS.index(precision), threads

    def linear(self, codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> np.ndarray:
        sizes = (codes.shape[0], codes.shape[1] * 2, len(x))
        return self._call("linear", sizes, codes, scales, x).reshape(len(x), -1)

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return self._call("rms_norm", x.shape, x, weight, np.float32(eps)).reshape(x.shape)

    def head(
        self, x: np.ndarray, norm: np.ndarray, eps: float, codes: np.ndarray, scales: np.ndarray
    ) -> np.ndarray:
        sizes = (codes.shape[0], x.shape[1], len(x))
        arrays = (codes, scales, x, norm, np.float32(eps))
        return self._call("head", sizes, *arrays).reshape(len(x), -1)

    def attention(
        self,
        shape: AttentionShape,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        position: int,
        key_cache: np.ndarray | None,
        value_cache: np.ndarray | None,
        periods: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count, none = len(q), np.zeros(0, np.float32)
        caches = [none if cache is None else cache for cache in (key_cache, value_cache)]
        out = self._call("attention", (position, count), bytes(shape), q, k, v, *caches, periods)
        rows = (shape.kv_heads, count, shape.head_dim)
        y, keys, values = np.split(out, [q.size, q.size + k.size])
        return y.reshape(q.shape), keys.reshape(rows), values.reshape(rows)

    def moe_ffn(self, shape: MoeShape, weights: MoeWeights, x: np.ndarray) -> np.ndarray:
        tensors = [weights.router, weights.expert_bias]
        for name in ("gate_up", "down", "shared_gate", "shared_up", "shared_down"):
            int4: Int4 = getattr(weights, name)
            tensors += [int4.codes, int4.scales]
        arrays = [bytes(shape), x, *(_content(tensor) for tensor in tensors)]
        return self._call("moe_ffn", (len(x),), *arrays).reshape(x.shape)

    def _call(self, operator: str, sizes: tuple[int, ...], *arrays: Any) -> np.ndarray:
        three = (*sizes, 0, 0)[:3]
        header = struct.pack("<6i", OPERATORS.index(operator), self.precision, self.threads, *three)
        contents = [a if isinstance(a, bytes) else np.asarray(a).tobytes() for a in arrays]
        return self.server.call(header, contents)


def _content(tensor: Tensor) -> bytes:
    return c.string_at(tensor.data, tensor.bytes) if tensor.bytes else b""
