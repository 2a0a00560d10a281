"""What memory this machine can give a run, and how a run is kept within it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

MOST_CACHE = 0.125  # of a run's own peak: freed arrays that MLX keeps to use again
_LEAST_CACHE = 64_000_000
_LEAST_LIMIT = 500_000_000  # below it waiting costs time and saves nothing worth having


@dataclass(frozen=True)
class MachineMemory:
    """The bytes that a run may take, and where that number comes from."""

    bytes: int
    what: str  # of which they are
    advice: str  # how to have more; empty: there is no way


def machine_memory() -> MachineMemory:
    """What MLX may hold here: on a GPU its working set, elsewhere what Linux says is available."""
    if mx.default_device().type == mx.DeviceType.gpu:
        working_set = int(mx.device_info()["max_recommended_working_set_size"])
        if sys.platform != "darwin":
            return MachineMemory(working_set, "the GPU", "")
        wanted = int(mx.device_info()["memory_size"] * 0.85 / 2**20)
        advice = (
            f"`sudo sysctl iogpu.wired_limit_mb={wanted}` lets the GPU have more of this Mac's "
            "memory until it is started again"
        )
        return MachineMemory(working_set, "the GPU's working set", advice)
    return MachineMemory(_available(), "free memory", "close other programs")


def _available() -> int:
    """Bytes that can be had without swapping."""
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(mx.device_info().get("memory_size", 0))  # macOS: the memory of the machine


def bound_memory(limit: int, cache: int) -> None:
    """Let MLX run no further ahead than `limit` bytes, and keep `cache` of freed arrays at most.

    MLX begins operations, and allocates what they write, up to a hundred ahead of those that are
    done. Beyond the limit it waits for them. Small runs are not held back.
    """
    mx.set_memory_limit(max(limit, _LEAST_LIMIT))
    mx.set_cache_limit(cache)


def cache_bound(peak: int) -> int:
    """Bytes of freed arrays that a run with that peak may keep."""
    return max(_LEAST_CACHE, int(MOST_CACHE * peak))
