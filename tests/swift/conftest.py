"""The Swift package, built once for all tests of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def swift_test() -> Callable[..., None]:
    """Runs the package's tests whose names have `only` in them, with variables of environment."""
    swift = shutil.which("swift")
    if swift is None:
        pytest.skip("swift is not installed, so the Swift package is not tested")
    built = subprocess.run(
        [swift, "build", "--build-tests", "-j", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]

    def run(only: str, **environment: str) -> None:
        done = subprocess.run(
            [swift, "test", "--skip-build", "--filter", only],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " 0 tests" not in done.stdout.splitlines()[-1], done.stdout

    return run
