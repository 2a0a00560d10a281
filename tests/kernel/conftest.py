"""The kernel's library, the same that the package loads, and its code paths."""

from __future__ import annotations

import platform

import pytest
from kernel_library import Library

from mobilemoe_mlx.cpu_kernel import library as package


@pytest.fixture(scope="session")
def library(kernel_is_built: None) -> Library:
    """The library, with every code path that this machine's compiler and CPU have."""
    return Library(package.PATH)


X86 = platform.machine() in ("x86_64", "AMD64")
CPU_PATHS = ["portable", *(["avx2", "avx512vnni"] if X86 else ["neon", "neondot", "neoni8mm"])]


@pytest.fixture(params=CPU_PATHS)
def cpu_path(request: pytest.FixtureRequest, library: Library) -> str:
    """Each code path in turn."""
    if request.param not in library.cpu_paths():
        pytest.skip(f"this CPU cannot run the code path {request.param}")
    return str(request.param)
