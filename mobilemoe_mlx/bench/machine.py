"""The machine that figures were measured on: its CPU, and what its memory gives."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Instructions that decide which code runs, as Linux and macOS name them.
_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16")
_ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve")
_READ_BYTES = 256_000_000  # well beyond any cache


def cpu() -> str:
    """The CPU's name and the vector instructions that it has."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    known = [flag for flag in flags if flag in (*_FLAGS, *_ARM_FLAGS)]
    return f"{fields.get('model name', platform.machine())} ({' '.join(known)})"


class Bandwidth:
    """Measures how many bytes a second `threads` threads read from memory."""

    def __init__(self, threads: int) -> None:
        self._parts = np.array_split(np.ones(_READ_BYTES // 4, np.int32), threads)
        self._pool = ThreadPoolExecutor(threads)
        self.measure()  # pages are touched for the first time

    def measure(self) -> float:
        """Bytes a second, the best of three readings."""
        best = 0.0
        for _ in range(3):
            start = time.perf_counter()
            # A vector operation a word, while which numpy lets other threads run.
            list(self._pool.map(np.bitwise_or.reduce, self._parts))
            best = max(best, _READ_BYTES / (time.perf_counter() - start))
        return best
