"""docs/ios.md: its Swift for Core ML compiles as in an app, and is the code that the tests run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ios.md").read_text(encoding="utf-8")
# Those over the library alone are compiled by test_swift_package.py.
BLOCKS = re.findall(r"(?<!<!-- of the package -->\n)^```swift\n(.*?)^```", PAGE, re.M | re.S)
TESTED = ROOT / "coreml" / "Tests" / "MobileMoECoreMLTests" / "IOSPage.swift"


def test_the_code_is_what_the_tests_run() -> None:
    tested = TESTED.read_text(encoding="utf-8")
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        imports = re.findall(r"^import \w+$", block, re.M)
        code = re.sub(r"^import \w+\n+", "", block, flags=re.M)
        assert code.strip() in tested
        assert all(line in tested.splitlines() for line in imports)


@pytest.mark.skipif(sys.platform != "linux", reason="Core ML is stood in for on Linux alone")
@pytest.mark.parametrize("mode", ["5", "6"])
@pytest.mark.parametrize("isolation", ["MainActor", "nonisolated"])
def test_it_compiles_in_every_mode(swift: str, tmp_path: Path, mode: str, isolation: str) -> None:
    """Without a warning, also where Xcode puts all code on the main actor."""
    (tmp_path / "page.swift").write_text("\n".join(BLOCKS), encoding="utf-8")
    built = ROOT / ".build" / "debug"
    maps = [
        word
        for path in built.glob("*.build/module.modulemap")
        for word in ("-Xcc", f"-fmodule-map-file={path}")
    ]
    command = [str(Path(swift).with_name("swiftc")), "-typecheck", "-parse-as-library", *maps]
    command += ["-swift-version", mode, "-default-isolation", isolation, "-warnings-as-errors"]
    command += ["-I", str(built / "Modules"), str(tmp_path / "page.swift")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
