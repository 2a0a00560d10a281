"""Builds coreml/MLXSwift on Linux by hand: mlx-swift's own package wants Metal or CUDA.

MLX itself is its Linux wheel; mlx-c, mlx-swift and mlx-swift-lm are compiled from their sources,
but of mlx-swift-lm's models ours alone. coreml/MLXSwift/README.md says how to get the sources.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGE = _ROOT / "coreml" / "MLXSwift"
# Metal's and CUDA's, and documentation.
_NOT_ON_LINUX = ("GPU+Metal.swift", "GPU+CUDA.swift", "MLXArray+Metal.swift", "Documentation.docc")
_NUMERICS = {
    "_NumericsShims": (),
    "IntegerUtilities": (),
    "RealModule": ("_NumericsShims",),
    "ComplexModule": ("RealModule",),
    "Numerics": ("ComplexModule", "IntegerUtilities", "RealModule"),
}
_SWIFT = {
    "MLX": ("Cmlx", "Numerics"),
    "MLXNN": ("MLX",),
    "MLXOptimizers": ("MLX", "MLXNN"),
    "MLXLMCommon": ("MLX", "MLXNN", "MLXOptimizers"),
    "MLXLLM": ("MLXLMCommon",),
    "MobileMoEMLX": ("MLXLLM", "MLXLMCommon", "MobileMoE"),
}
# The registry's list of all other models, and what only these need.
_MODELS = re.compile(r"(?s)\.init\(creators: \[.*?\n    \]\)")
_OTHERS = re.compile(r",\s*messageGenerator: \w+\(\)")
_CREATORS = re.compile(r"(?s)private func createQwen3CompatibleModel.*?\n}\n")


def build(sources: Path, folder: Path) -> Path:
    """Build in `folder`, which keeps what is compiled for the next time; -> the program `logits`.

    `sources` has mlx-c, mlx-swift, mlx-swift-lm, swift-numerics, and mlx-cpu, the unpacked wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _links(sources, folder)
    wheel = sources / "mlx-cpu" / "mlx"
    (folder / "Package.swift").write_text(_manifest(sources, wheel), encoding="utf-8")
    done = subprocess.run(
        ["swift", "build", "-j", "2", "--product", "logits"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return folder / ".build" / "debug" / "logits"


def _links(sources: Path, folder: Path) -> None:
    def link(name: str, target: Path) -> None:
        place = folder / name
        if place.is_symlink():
            place.unlink()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.resolve(), target_is_directory=target.is_dir())

    for name in _NUMERICS:
        link(name, sources / "swift-numerics" / "Sources" / name)
    for name in ("MLX", "MLXNN", "MLXOptimizers"):
        link(name, sources / "mlx-swift" / "Source" / name)
    lm = sources / "mlx-swift-lm" / "Libraries"
    link("MLXLMCommon/library", lm / "MLXLMCommon")
    link("MLXLMCommon/OnLinux.swift", _PACKAGE / "linux" / "MLXLMCommonOnLinux.swift")
    link("MobileMoEMLX", _PACKAGE / "Sources" / "MobileMoEMLX")
    link("logits/main.swift", _PACKAGE / "linux" / "logits.swift")
    link("MLXLLM/LLMModel.swift", lm / "MLXLLM" / "LLMModel.swift")
    factory = (lm / "MLXLLM" / "LLMModelFactory.swift").read_text(encoding="utf-8")
    factory, lists = _MODELS.subn(".init(creators: [:])", factory)
    assert lists == 1, "mlx-swift-lm writes its registry in another way now"
    factory = _OTHERS.sub("", _CREATORS.sub("", factory))
    place = folder / "MLXLLM" / "LLMModelFactory.swift"
    if not place.is_file() or place.read_text(encoding="utf-8") != factory:
        place.write_text(factory, encoding="utf-8")
    link("Cmlx/include", sources / "mlx-swift" / "Source" / "Cmlx" / "include")
    if not (folder / "Cmlx" / "c").is_dir():
        shutil.copytree(
            sources / "mlx-c" / "mlx" / "c",
            folder / "Cmlx" / "c",
            ignore=lambda _, names: [n for n in names if not n.endswith(".cpp")],
        )


def _manifest(sources: Path, wheel: Path) -> str:
    def target(name: str, needs: tuple[str, ...], more: str = "") -> str:
        listed = ", ".join(
            '.product(name: "MobileMoE", package: "MobileMoE")'
            if each == "MobileMoE"
            else f'"{each}"'
            for each in needs
        )
        return f'        .target(name: "{name}", dependencies: [{listed}], path: "{name}"{more}),'

    def strict(name: str) -> str:
        left = ", ".join(f'"{each}"' for each in _NOT_ON_LINUX)
        exclude = f", exclude: [{left}]" if name == "MLX" else ""
        if name in ("MLXLMCommon", "MLXLLM", "MobileMoEMLX"):
            version = ".v6" if name == "MobileMoEMLX" else ".v5"
            return exclude + f", swiftSettings: [.swiftLanguageMode({version})]"
        return exclude + ', swiftSettings: [.enableExperimentalFeature("StrictConcurrency")]'

    numerics = [
        target(name, needs, ', exclude: ["CMakeLists.txt"]') for name, needs in _NUMERICS.items()
    ]
    swift = [target(name, needs, strict(name)) for name, needs in _SWIFT.items()]
    lines = "\n".join([*numerics, *swift])
    return f"""\
// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "build",
    dependencies: [.package(name: "MobileMoE", path: "{_ROOT}")],
    targets: [
        .target(
            name: "Cmlx", path: "Cmlx", publicHeadersPath: "include",
            cxxSettings: [.unsafeFlags([
                "-I{wheel}/include", "-I{sources}/mlx-c", "-DMLX_VERSION=\\"0.31.1\\"", "-w",
            ])],
            linkerSettings: [.unsafeFlags([
                "-L{wheel}/lib", "-lmlx", "-Xlinker", "-rpath", "-Xlinker", "{wheel}/lib",
            ])]),
{lines}
        .executableTarget(
            name: "logits", dependencies: ["MobileMoEMLX"], path: "logits",
            swiftSettings: [.swiftLanguageMode(.v5)]),
    ],
    swiftLanguageModes: [.v5],
    cxxLanguageStandard: .cxx20
)
"""
