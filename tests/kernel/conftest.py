"""The kernel's library, the same that the package loads, and its code paths."""

from __future__ import annotations

import functools
import importlib.util
import platform
from collections.abc import Iterator
from pathlib import Path

import emulated_arm64
import kernel_programs
import pytest
from kernel_library import Library
from ort_nodes import Host, Runtime

from mobilemoe_mlx.cpu_kernel import library as package

ARM64 = platform.machine() in ("arm64", "aarch64")
# Of this machine's architecture.
CPU_PATHS = ["portable", *(emulated_arm64.CPU_PATHS if ARM64 else ("avx2", "avx512vnni"))]


@pytest.fixture(scope="session")
def library(kernel_is_built: None) -> Library:
    """The library, with every code path that this machine's compiler and CPU have."""
    return Library(package.PATH)


def named_path(name: str, library: Library) -> str:
    if name not in library.cpu_paths():
        pytest.skip(f"this CPU cannot run the code path {name}")
    return name


@pytest.fixture(params=CPU_PATHS)
def cpu_path(request: pytest.FixtureRequest, library: Library) -> str:
    """Each code path of this machine in turn."""
    return named_path(request.param, library)


@pytest.fixture(scope="session")
def arm64_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs for arm64 are built, so that they share the kernel's objects."""
    return tmp_path_factory.mktemp("arm64")


@pytest.fixture(scope="session")
def emulated_library(library: Library, arm64_folder: Path) -> Iterator[Library]:
    """The library, which also computes operators with the code paths of an emulated arm64 CPU."""
    emulator, program = emulated_arm64.build(arm64_folder, "operator_server.cpp")
    servers = {
        name: emulated_arm64.Server([emulator, "-cpu", "max", program, name])
        for name in emulated_arm64.CPU_PATHS
    }
    for name, server in servers.items():
        library.emulated[name] = functools.partial(emulated_arm64.EmulatedRuntime, server)
    yield library
    library.emulated.clear()
    for server in servers.values():
        server.close()


@pytest.fixture(params=[*CPU_PATHS, *(() if ARM64 else emulated_arm64.CPU_PATHS)])
def any_path(request: pytest.FixtureRequest, library: Library) -> str:
    """Each code path of this machine, and those of an emulated one, for operators alone."""
    if request.param in CPU_PATHS:
        return named_path(request.param, library)
    request.getfixturevalue("emulated_library")
    return str(request.param)


@pytest.fixture(scope="session")
def arm64_host(kernel_is_built: None, arm64_folder: Path) -> list[str]:
    """A command that starts the stand-in for ONNX Runtime, on an emulated CPU."""
    sources = kernel_programs.ORT_SOURCES
    emulator, program = emulated_arm64.build(arm64_folder, "ort_host.cpp", sources)
    return [emulator, "-cpu", "max", program]


@pytest.fixture
def runtime(kernel_is_built: None) -> Runtime:
    """ONNX Runtime, with the fastest code path."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        pytest.skip("needs the extra onnx")
    return Runtime()


@pytest.fixture(params=["fastest", "portable", *(() if ARM64 else emulated_arm64.CPU_PATHS)])
def backend(request: pytest.FixtureRequest) -> Iterator[Host | Runtime]:
    """ONNX Runtime with code paths of this CPU, and the stand-in with those of arm64."""
    if request.param in emulated_arm64.CPU_PATHS:
        found = Host(request.getfixturevalue("arm64_host"), request.param)
        yield found
        found.close()
    else:
        here: Runtime = request.getfixturevalue("runtime")
        here.cpu_path = "" if request.param == "fastest" else request.param
        yield here
