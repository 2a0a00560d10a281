"""The kernel under the compiler's sanitizers: programs built with them, which must end well."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNEL = HERE.parents[1] / "coreml" / "kernel"


def run(command: list[str]) -> None:
    """Run a command; its output is the message of the failure."""
    # Leaks are looked for with ptrace, which containers often forbid.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"


def built(folder: Path, sanitizers: str, program: Path, *flags: str) -> Path:
    """`program` and every source of the kernel, with the sanitizers; skips where there are none."""
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler: install g++ or clang, or set CXX")
    sanitize = f"-fsanitize={sanitizers}"
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}\n", encoding="utf-8")
    probe = [compiler, sanitize, str(empty), "-o", str(folder / "empty")]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{compiler} comes without the libraries of {sanitize}")
    options = ["-std=c++17", "-O1", "-g", sanitize, "-fno-sanitize-recover=all", *flags]
    include = [f"-I{KERNEL / 'include'}", f"-I{KERNEL / 'bench'}"]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        run([compiler, *options, *include, "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*sorted((KERNEL / "src").glob("*.cpp")), program]))
    target = folder / program.stem
    run([compiler, sanitize, "-o", str(target), *objects, "-pthread"])
    return target


def test_threads(tmp_path: Path) -> None:
    """Two sessions at once, tasks that are stolen, a session that is cancelled."""
    run([str(built(tmp_path, "thread", HERE / "two_sessions.cpp"))])


def test_addresses_and_undefined_behaviour(tmp_path: Path) -> None:
    """Random sizes through the C interface, with weights in buffers of exactly their size."""
    program = KERNEL / "fuzz" / "fuzz_shapes.cpp"
    run([str(built(tmp_path, "address,undefined", program, "-DMOBILEMOE_STANDALONE")), "80"])
