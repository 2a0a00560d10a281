"""Peak memory of this process, on the GPU and on the CPU, and what it read from storage."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import mlx.core as mx


def peak_memory_bytes() -> int:
    """The larger of the process's resident set and of what MLX held, which may be on a GPU."""
    return max(_peak_resident_bytes(), int(mx.get_peak_memory()))


def resident_bytes() -> int:
    """The process's resident set now; where the system does not tell, its largest so far."""
    return _of_linux("VmRSS") or _peak_resident_bytes()


def _of_linux(field: str) -> int:
    """Bytes of a field of /proc/self/status; 0 elsewhere."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _peak_resident_bytes() -> int:
    if peak := _of_linux("VmHWM"):  # getrusage starts at what the parent process had
        return peak
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
