"""Build the CPU kernel's two libraries into the Python package, with CMake and Ninja.

Run: python coreml/kernel/build_library.py
A wheel's build runs it too (hatch_build.py). Only what changed is compiled again; the objects stay
in coreml/kernel/build. The standard library is all it needs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

KERNEL = Path(__file__).resolve().parent
BUILD = KERNEL / "build"
PACKAGE = KERNEL.parents[1] / "mobilemoe_mlx"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
# Each library, and its folder in the package: for the CPU engine, and operators for ONNX Runtime.
LIBRARIES = {f"libmobilemoe{SUFFIX}": "cpu_kernel", f"libmobilemoe_ort{SUFFIX}": "onnx_operators"}


class NoCompiler(Exception):
    """This machine has no CMake, no Ninja or no C++17 compiler; the message says which."""


def build_library() -> list[Path]:
    """Compile the libraries; -> their places in the package.

    Raises NoCompiler where the tools are missing, and CalledProcessError, after the compiler's own
    message, where the sources do not compile.
    """
    cmake = _tool("cmake")
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # two runs of the tests, say
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(cmake)


def _build(cmake: str) -> list[Path]:
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
    configure = [cmake, "-S", str(KERNEL), "-B", str(BUILD), *generator]
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    if done.returncode:
        (BUILD / "CMakeCache.txt").unlink(missing_ok=True)  # it remembers that there is none
        raise NoCompiler(f"CMake finds no C++17 compiler that works:\n{done.stderr.strip()}")
    subprocess.run([cmake, "--build", str(BUILD)], check=True, stdout=sys.stderr)
    targets = [PACKAGE / folder / name for name, folder in LIBRARIES.items()]
    for target in targets:
        built = BUILD / target.name
        if not target.exists() or target.read_bytes() != built.read_bytes():
            # Renamed into place, since a process may have the old one mapped.
            new = target.with_name(f"{target.name}.{os.getpid()}")
            shutil.copyfile(built, new)
            new.replace(target)
    return targets


def _tool(name: str) -> str:
    """The program `name` beside this Python, else on the path."""
    own = str(Path(sys.executable).parent)
    found = shutil.which(name, path=own) or shutil.which(name)
    if found is None:
        raise NoCompiler(f"{name} is not installed: pip install {name}")
    return found


if __name__ == "__main__":
    try:
        print(*build_library(), sep="\n")
    except (NoCompiler, subprocess.CalledProcessError) as error:
        sys.exit(f"The libraries were not built. {error}")
