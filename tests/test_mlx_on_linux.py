"""OpenBLAS and the compiler: found by the command itself, said where they are missing."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mobilemoe_mlx
from mobilemoe_mlx import mlx_on_linux

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="concerns Linux alone")

ROOT = Path(mobilemoe_mlx.__file__).parents[1]
MAPS = "open('/proc/self/maps').read()"


def run(code: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A process that has nothing preloaded."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment |= {"PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def openblas() -> None:
    if not mlx_on_linux.load_openblas():
        pytest.skip("OpenBLAS is not installed")


@pytest.mark.usefixtures("openblas")
def test_mlx_multiplies_with_openblas() -> None:
    """The symbol that MLX's library calls is OpenBLAS's, not the one that its wheel brings."""
    code = (
        "from mobilemoe_mlx import mlx_on_linux\nassert mlx_on_linux.prepare() is None\n"
        "import ctypes, mlx.core\n"
        "address = ctypes.cast(ctypes.CDLL(None).cblas_sgemm, ctypes.c_void_p).value\n"
        "for line in open('/proc/self/maps'):\n"
        "    begin, end = (int(x, 16) for x in line.split()[0].split('-'))\n"
        "    if begin <= address < end: print(line.split()[-1])"
    )
    done = run(code)
    assert "openblas" in done.stdout, done


@pytest.mark.usefixtures("openblas")
def test_the_command_loads_it_and_the_library_does_not() -> None:
    code = "import sys; from mobilemoe_mlx.cli import info, main\n"
    code += f"info.run = lambda args: print('openblas' in {MAPS}, 'mlx.core' in sys.modules)\n"
    code += "main.COMMANDS['info'] = main.Command('', True)\nmain.main(['info'])"
    assert run(code).stdout == "True False\n"
    assert run(f"import mobilemoe_mlx\nprint('openblas' in {MAPS})").stdout == "False\n"


def test_what_is_missing_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from mobilemoe_mlx import mlx_on_linux; mlx_on_linux._OPENBLAS = ('libabsent.so',)\n"
    code += "from mobilemoe_mlx.cli import info, main\ninfo.run = lambda args: print('done')\n"
    code += "main.COMMANDS['info'] = main.Command('', {})\nmain.main(['info'])"
    done = run(code.format(True))
    assert done.stdout == "done\n"
    assert done.stderr.count("\n") == 1 and "apt-get install libopenblas0-pthread" in done.stderr
    assert run(code.format(False)).stderr == ""  # a command that computes nothing


def test_a_preloaded_blas_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a library was loaded")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setenv("LD_PRELOAD", "/opt/lib/libblas.so.3")
    assert mlx_on_linux.load_openblas()


@pytest.mark.parametrize("compiler", [True, False])
def test_without_a_compiler_mlx_is_told(monkeypatch: pytest.MonkeyPatch, compiler: bool) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if compiler else None)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "")  # so that it is put back afterwards
    monkeypatch.delenv("MLX_DISABLE_COMPILE")
    mlx_on_linux.prepare()
    assert ("MLX_DISABLE_COMPILE" in os.environ) is not compiler


def test_nothing_happens_once_mlx_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", sys)
    monkeypatch.setattr(mlx_on_linux, "_OPENBLAS", ("libabsent.so",))
    assert mlx_on_linux.prepare() is None


@pytest.mark.usefixtures("openblas")
def test_the_script_finds_what_the_command_loads() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "find-openblas")],
        capture_output=True,
        text=True,
        env=environment | {"PYTHON": sys.executable},
    )
    path = done.stdout.strip()
    loaded = run(f"from mobilemoe_mlx import mlx_on_linux\nmlx_on_linux.prepare()\nprint({MAPS})")
    assert path in loaded.stdout and Path(path).is_file(), done
