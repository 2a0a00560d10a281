"""What MLX needs from a Linux machine to run well on its CPU: OpenBLAS and a C++ compiler.

Imports nothing but the standard library, so that it can run before MLX is imported, and as a
script (`python mobilemoe_mlx/mlx_on_linux.py`) before anything is installed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

# Under the names that distributions give it, the build with POSIX threads first.
_OPENBLAS = ("libopenblasp.so.0", "libopenblas_pthreads.so.0", "libopenblas.so.0")
_MISSING = (
    "OpenBLAS is not installed: MLX on this CPU is several times slower without it. On Debian and "
    "Ubuntu: sudo apt-get install libopenblas0-pthread"
)


def prepare() -> str | None:
    """Make OpenBLAS and the compiler's absence known to MLX, which must not be imported yet.

    Returns a sentence for the user where OpenBLAS is missing. Does nothing on other systems, and
    nothing once MLX is imported: both choices are made while it loads.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return None
    if shutil.which("g++") is None:  # the command with which MLX compiles fused operations
        os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    return None if load_openblas() else _MISSING


def load_openblas() -> bool:
    """Load OpenBLAS so that MLX, imported later, finds its BLAS there; says whether there is one.

    MLX's Linux wheel brings the slow reference BLAS. Symbols of a library that is loaded globally
    come before those of MLX's own libraries, as with LD_PRELOAD.
    """
    if "blas" in os.environ.get("LD_PRELOAD", "") or "mkl" in os.environ.get("LD_PRELOAD", ""):
        return True  # the user's choice
    own = Path(sys.prefix) / "lib"  # conda's folder, which the dynamic loader does not search
    for name in (*_OPENBLAS, *(str(own / name) for name in _OPENBLAS)):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def openblas_path() -> str:
    """The file of the OpenBLAS that `load_openblas` loads; empty where there is none."""
    if sys.platform != "linux" or not load_openblas():
        return ""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next((line.split()[-1] for line in lines if "openblas" in line), "")


if __name__ == "__main__":
    if sys.argv[1:] == ["--path"]:
        print(openblas_path())
        sys.exit(0)
    sys.exit(0 if sys.platform != "linux" or load_openblas() else _MISSING)
