"""C++ programs over the kernel's sources, compiled for a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KERNEL = Path(__file__).parents[2] / "coreml" / "kernel"


def run(command: list[str]) -> str:
    """Run a command; -> what it prints, which is the message of a failure too."""
    # Leaks are looked for with ptrace, which containers often forbid.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    output = (done.stdout + done.stderr)[-4000:]
    assert done.returncode == 0, f"{' '.join(command)}\n{output}"
    return done.stdout


# The operators for ONNX Runtime, which a program needs that calls them.
ORT_SOURCES = [path for path in (KERNEL / "ort").glob("*.cpp") if path.stem != "ort_api_check"]


def build(
    folder: Path,
    compiler: str,
    program: Path,
    options: list[str],
    link: list[str],
    more: Sequence[Path] = (),
) -> Path:
    """Compile `program`, every source of the kernel and `more` in `folder`, two at a time.

    Objects that are in the folder already are taken as they are.
    """
    include = [f"-I{KERNEL / name}" for name in ("include", "bench", "src")]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        if not target.exists():
            run([compiler, "-std=c++17", *options, *include, "-c", str(source), "-o", str(target)])
        return str(target)

    sources = [*sorted((KERNEL / "src").glob("*.cpp")), *more, program]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    target = folder / program.stem
    run([compiler, *link, "-o", str(target), *objects, "-pthread"])
    return target
