"""The kernel under the compiler's sanitizers: programs built with them, which must end well."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import kernel_programs
import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is compiled, one in it for each choice of sanitizers."""
    return tmp_path_factory.mktemp("sanitized")


def built(objects: Path, sanitizers: str, program: Path, *flags: str) -> str:
    """`program` and every source of the kernel, with the sanitizers; skips where there are none.

    The kernel's objects are compiled once for each choice of sanitizers.
    """
    folder = objects / sanitizers
    folder.mkdir(exist_ok=True)
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler: install g++ or clang, or set CXX")
    sanitize = f"-fsanitize={sanitizers}"
    empty = folder / "empty.cpp"
    empty.write_text("int main() {}\n", encoding="utf-8")
    probe = [compiler, sanitize, str(empty), "-o", str(folder / "empty")]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{compiler} comes without the libraries of {sanitize}")
    options = ["-O1", "-g", sanitize, "-fno-sanitize-recover=all", *flags]
    return str(kernel_programs.build(folder, compiler, program, options, [sanitize]))


def test_threads(objects: Path) -> None:
    """Two sessions at once, tasks that are stolen, a session that is cancelled."""
    kernel_programs.run([built(objects, "thread", HERE / "two_sessions.cpp")])


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_experts_that_are_read(objects: Path, sanitizers: str) -> None:
    """Threads that read ahead, callbacks that fail, and the same bits as without."""
    kernel_programs.run([built(objects, sanitizers, HERE / "read_experts.cpp")])


def test_addresses_and_undefined_behaviour(objects: Path) -> None:
    """Random sizes through the C interface, with weights in buffers of exactly their size."""
    program = kernel_programs.KERNEL / "fuzz" / "fuzz_shapes.cpp"
    options = ("address,undefined", program, "-DMOBILEMOE_STANDALONE")
    kernel_programs.run([built(objects, *options), "40"])
