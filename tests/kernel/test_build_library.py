"""The script that compiles the library says what a machine lacks, and leaves nothing half done."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNEL = Path(__file__).parents[2] / "coreml" / "kernel"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the kernel's sources and an empty package."""
    shutil.copytree(
        KERNEL, tmp_path / "coreml" / "kernel", ignore=shutil.ignore_patterns("build", "bench")
    )
    for folder in ("cpu_kernel", "onnx_operators"):
        (tmp_path / "mobilemoe_mlx" / folder).mkdir(parents=True)
    return tmp_path


def run(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = checkout / "coreml" / "kernel" / "build_library.py"
    return subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )


def test_without_cmake(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(checkout / "coreml" / "kernel" / "build_library.py"))
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(script["NoCompiler"], match="cmake is not installed: pip install cmake"):
        script["build_library"]()


@pytest.mark.usefixtures("kernel_is_built")
def test_without_a_compiler(checkout: Path) -> None:
    done = run(checkout, PATH="/usr/bin:/bin", CXX="false")
    assert done.returncode == 1
    assert "The libraries were not built. CMake finds no C++17 compiler that works" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((checkout / "mobilemoe_mlx").glob("*/*"))


@pytest.mark.usefixtures("kernel_is_built")
def test_sources_that_do_not_compile(checkout: Path) -> None:
    sources = checkout / "coreml" / "kernel" / "src"
    for path in [*sources.glob("*.cpp"), *(sources.parent / "ort").glob("*.cpp")]:
        path.unlink()
    (sources.parent / "ort" / "none.cpp").write_text("", encoding="utf-8")
    (sources / "only.cpp").write_text('extern "C" int it() { return 3; }\n', encoding="utf-8")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    assert run(checkout, **environment).returncode == 0
    built = sorted((checkout / "mobilemoe_mlx").glob("*/*"))
    assert [path.parent.name for path in built] == ["cpu_kernel", "onnx_operators"]
    before = [path.read_bytes() for path in built]
    (sources / "only.cpp").write_text("nonsense\n", encoding="utf-8")
    done = run(checkout, **environment)
    assert done.returncode == 1
    assert "nonsense" in done.stderr and "Traceback" not in done.stderr
    assert [path.read_bytes() for path in built] == before
