"""How many threads OpenBLAS multiplies in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mobilemoe_mlx

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="concerns Linux alone")

_CODE = """
import ctypes
from mobilemoe_mlx import linux_cpu, mlx_on_linux
if not mlx_on_linux.load_openblas():
    raise SystemExit(3)
blas = ctypes.CDLL(None)
blas.openblas_set_num_threads(2)
linux_cpu.use_threads_for({hidden_size})
print(blas.openblas_get_num_threads())
"""


@pytest.mark.parametrize(
    ("hidden_size", "asked", "threads"), [(64, "", 1), (768, "", 2), (64, "2", 2)]
)
def test_small_models_take_one_unless_told(hidden_size: int, asked: str, threads: int) -> None:
    dropped = ("LD_PRELOAD", "OPENBLAS_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["PYTHONPATH"] = str(Path(mobilemoe_mlx.__file__).parents[1])
    if asked:
        environment["OPENBLAS_NUM_THREADS"] = asked
    done = subprocess.run(
        [sys.executable, "-c", _CODE.format(hidden_size=hidden_size)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 3:
        pytest.skip("OpenBLAS is not installed")
    assert int(done.stdout) == threads, done
