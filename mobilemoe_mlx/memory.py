"""Peak memory of this process, on the GPU and on the CPU, and what it read from storage."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import mlx.core as mx


def peak_memory_bytes() -> int:
    """The larger of the process's resident set and of what MLX held, which may be on a GPU."""
    return max(_peak_resident_bytes(), int(mx.get_peak_memory()))


def _peak_resident_bytes() -> int:
    if sys.platform == "linux":
        # Not getrusage, which starts at what the parent process had.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes


def storage_bytes_read() -> int | None:
    """Bytes of files that this process has read from storage, not from the page cache.

    None where the system does not tell.
    """
    try:
        for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    except OSError:
        pass
    return None
