"""The kernel's library, built once a session."""

from __future__ import annotations

import kernel_library
import pytest
from kernel_library import Library


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library with every code path that this machine's compiler and CPU have."""
    compiler = kernel_library.compiler()
    if compiler is None:
        pytest.skip("the kernel's tests need a C++ compiler: install g++ or clang, or set CXX")
    return Library(kernel_library.build(tmp_path_factory.mktemp("kernel"), compiler))


@pytest.fixture(params=["portable", "avx2"])
def cpu_path(request: pytest.FixtureRequest, library: Library) -> str:
    """Each code path in turn."""
    if request.param not in library.cpu_paths():
        pytest.skip(f"this CPU cannot run the code path {request.param}")
    return str(request.param)
