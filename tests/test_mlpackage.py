"""Saved packages of any model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mobilemoe_mlx


def test_an_interrupt_while_coremltools_is_imported_is_kept(tmp_path: Path) -> None:
    """coremltools goes on after whatever its import of PyTorch raises."""
    (tmp_path / "coremltools.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(100): pass\n"
        "except BaseException:\n"
        "    pass\n"
    )
    paths = os.pathsep.join(map(str, (tmp_path, Path(mobilemoe_mlx.__file__).parents[1])))
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    from mobilemoe_mlx.mlpackage.interrupts import import_coremltools\n"
        "    import_coremltools()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "interrupted True\n", done.stderr
