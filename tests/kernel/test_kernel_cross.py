"""The kernel for arm64, cross-compiled and run in an emulator."""

from __future__ import annotations

import shutil
from pathlib import Path

import kernel_programs
import pytest


def test_arm64(tmp_path: Path) -> None:
    """Every code path of arm64 computes what plain C++ in float32 does."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no cross compiler or emulator for arm64: scripts/install-cross-tools")
    program = kernel_programs.build(
        tmp_path,
        compiler,
        Path(__file__).with_name("compare_paths.cpp"),
        ["-O2", "-Wall", "-Wextra", "-Werror"],
        ["-static"],
    )
    kernel_programs.run([emulator, str(program)])
