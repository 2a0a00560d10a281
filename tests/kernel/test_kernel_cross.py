"""The kernel for arm64, cross-compiled and run in an emulator of several CPUs."""

from __future__ import annotations

import shutil
from pathlib import Path

import kernel_programs
import pytest

EMULATOR = shutil.which("qemu-aarch64")


@pytest.fixture(scope="module")
def compare_paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None or EMULATOR is None:
        pytest.skip("no cross compiler or emulator for arm64: scripts/install-cross-tools")
    return kernel_programs.build(
        tmp_path_factory.mktemp("arm64"),
        compiler,
        Path(__file__).with_name("compare_paths.cpp"),
        ["-O2", "-Wall", "-Wextra", "-Werror"],
        ["-static"],
    )


@pytest.mark.parametrize(
    ("cpu", "names"),
    [
        ("max", ["neoni8mm", "neondot", "neon", "portable"]),
        ("cortex-a76", ["neondot", "neon", "portable"]),  # FEAT_DotProd, no FEAT_I8MM
        ("cortex-a53", ["neon", "portable"]),  # Armv8.0-A
    ],
)
def test_arm64(compare_paths: Path, cpu: str, names: list[str]) -> None:
    """The CPU's code paths are found, and each computes what plain C++ in float32 does."""
    output = kernel_programs.run([str(EMULATOR), "-cpu", cpu, str(compare_paths)])
    found = dict.fromkeys(line.split(",")[0] for line in output.splitlines())
    assert list(found) == names
