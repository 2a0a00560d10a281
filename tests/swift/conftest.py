"""The Swift package, built once for all tests of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def swift() -> str:
    """The path of `swift`, with the package and its tests built; skips where there is none."""
    found = subprocess.run(
        ["sh", ROOT / "scripts" / "find-swift"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(found.stderr.strip())
    path = found.stdout.strip()
    built = subprocess.run(
        [path, "build", "--build-tests"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    return path


@pytest.fixture(scope="session")
def swift_test(swift: str) -> Callable[..., str]:
    """Runs the package's tests whose names match `only`, with variables of environment; -> output.

    Without `only` all of them; `skip`: but not those.
    """

    def run(only: str = "", skip: Sequence[str] = (), **environment: str) -> str:
        chosen = ["--filter", only] if only else []
        chosen += [word for name in skip for word in ("--skip", name)]
        done = subprocess.run(
            [swift, "test", "--skip-build", *chosen],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " 0 tests" not in done.stdout.splitlines()[-1], done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="session")
def program(swift: str) -> Path:
    """The program `mobilemoe-swift`."""
    done = subprocess.run(
        [swift, "build", "--show-bin-path"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip()) / "mobilemoe-swift"


@pytest.fixture(scope="session")
def run_program(program: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `mobilemoe-swift` with these words; `text`: its standard input."""

    def run(*words: object, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *map(str, words)], input=text, capture_output=True, text=True, check=False
        )

    return run
