"""Faster forms of the model's float32 operations for MLX's CPU backend on Linux.

MLX's Linux wheel computes `exp` one element at a time, with a call to the C library for every
multiply-add (15 ns), scatters one element at a time, and differentiates attention through the
whole square of scores. Each module here computes the same function with its own gradient; a Mac
never runs them (docs/training-speed.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

import mlx.core as mx

# glibc's malloc.h: the size from which an array gets pages of its own, the free memory at the end
# of the heap from which it is given back, and what the heap grows by at least; in bytes.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

# Hidden size of the largest model of which it was measured: docs/training-speed.md.
_ONE_THREAD_UP_TO = 64


def applies_to(*arrays: mx.array) -> bool:
    """True where these forms replace MLX's own: float32 arrays on the CPU of a Linux machine."""
    return _on_linux_cpu() and all(x.dtype == mx.float32 for x in arrays)


def _on_linux_cpu() -> bool:
    return sys.platform == "linux" and mx.default_device().type == mx.DeviceType.cpu


def keep_freed_memory() -> None:
    """Let the C library keep what is freed instead of giving each large array back to Linux.

    Pages that come back must be zeroed and mapped again, which costs more than the addition that
    fills them. Does nothing elsewhere.
    """
    if _on_linux_cpu():
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_M_TRIM_THRESHOLD, -1)
            libc.mallopt(_M_TOP_PAD, 64 << 20)


def use_threads_for(hidden_size: int) -> None:
    """Let OpenBLAS multiply in one thread where the model is so small that a second one costs more
    than it brings: it waits in a loop between products, at the expense of all that is not one.

    Leaves the choice to OPENBLAS_NUM_THREADS where that is set. Does nothing elsewhere.
    """
    if hidden_size > _ONE_THREAD_UP_TO or "OPENBLAS_NUM_THREADS" in os.environ:
        return
    if _on_linux_cpu():
        loaded = ctypes.CDLL(None)
        if hasattr(loaded, "openblas_set_num_threads"):
            loaded.openblas_set_num_threads(1)
