"""Whole models on arm64, cross-compiled and run in an emulator of several CPUs.

The operators are tested there by test_kernel_operators.py and test_kernel_golden.py.
"""

from __future__ import annotations

from pathlib import Path

import emulated_arm64
import kernel_programs
import pytest


@pytest.mark.parametrize(
    ("cpu", "names"),
    [
        ("max", ["neoni8mm", "neondot", "neon", "portable"]),
        ("cortex-a76", ["neondot", "neon", "portable"]),  # FEAT_DotProd, no FEAT_I8MM
        ("cortex-a53", ["neon", "portable"]),  # Armv8.0-A
    ],
)
def test_models(arm64_folder: Path, cpu: str, names: list[str]) -> None:
    """The CPU's code paths are found, and each computes what plain C++ in float32 does."""
    emulator, program = emulated_arm64.build(arm64_folder, "compare_paths.cpp")
    output = kernel_programs.run([emulator, "-cpu", cpu, program])
    found = dict.fromkeys(line.split(",")[0] for line in output.splitlines())
    assert list(found) == names


def test_experts_that_are_read(arm64_folder: Path) -> None:
    """The program of test_kernel_sanitizers.py: the same bits as without, callbacks that fail."""
    kernel_programs.run(emulated_arm64.build(arm64_folder, "read_experts.cpp"))
