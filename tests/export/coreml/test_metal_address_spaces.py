"""The Metal kernels keep Metal's address spaces apart, as a compiler on Linux can tell.

Swift's tests run their arithmetic as plain C++, where address spaces disappear
(coreml/Tests/Stubs/MetalShim). Here clang reads the same file as C++ for OpenCL, which has them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "coreml" / "Sources" / "MobileMoECoreML" / "Metal" / "experts.metal"
DECLARATIONS = ROOT / "coreml" / "Tests" / "Stubs" / "MetalShim" / "address_spaces"


def find_clang() -> str | None:
    """Swift's own clang, or any that knows C++ for OpenCL."""
    swift = shutil.which("swiftc")
    beside = [str(Path(swift).resolve().parent)] if swift else []
    return shutil.which("clang", path=":".join(beside)) or shutil.which("clang")


CLANG = find_clang()
needs_clang = pytest.mark.skipif(CLANG is None, reason="needs clang, which comes with Swift")


def errors(text: str, folder: Path) -> str:
    text = re.sub(r"\s*\[\[\w+(\(\d+\))?\]\]", "", text)
    file = folder / "experts.clcpp"
    file.write_text(re.sub(r"^kernel void", "__kernel void", text, flags=re.M))
    command = [CLANG, "-x", "clcpp", "-cl-std=CLC++2021", "-Xclang", "-finclude-default-header"]
    command += ["-Wall", "-Werror", "-fsyntax-only", f"-I{DECLARATIONS}", str(file)]
    return subprocess.run(command, capture_output=True, text=True).stderr


@needs_clang
def test_kernels_keep_address_spaces_apart(tmp_path: Path) -> None:
    assert errors(KERNELS.read_text(), tmp_path) == ""


@needs_clang
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("threadgroup float* to = left", "device float* to = left"),
        ("(device const ushort*)(codes", "(const ushort*)(codes"),
        ("thread Sums& sums", "device Sums& sums"),
    ],
)
def test_a_wrong_space_is_an_error(tmp_path: Path, right: str, wrong: str) -> None:
    text = KERNELS.read_text()
    assert right in text
    assert "error:" in errors(text.replace(right, wrong), tmp_path)
