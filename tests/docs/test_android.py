"""The guide for Android: its Java compiles against the names of onnxruntime-genai that it uses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "android.md").read_text(encoding="utf-8")
API = Path(__file__).parent / "java_api"


def test_java_compiles(tmp_path: Path) -> None:
    """No Java package of genai is within reach: `java_api` declares names of its sources."""
    compiler = shutil.which("javac")
    if compiler is None:
        pytest.skip("there is no Java compiler: apt-get install default-jdk-headless")
    blocks = re.findall(r"```java\n(.*?)\n```", GUIDE, re.DOTALL)
    sources = []
    for block in blocks:
        (name,) = re.findall(r"^public final class (\w+)", block, re.MULTILINE)
        sources.append(tmp_path / f"{name}.java")
        sources[-1].write_text(block, encoding="utf-8")
    assert sources
    command = [
        compiler,
        "--release",
        "11",
        "-Xlint:all,-try,-serial",
        "-Werror",
        "-d",
        str(tmp_path),
    ]
    files = [str(path) for path in (*sources, *API.rglob("*.java"))]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_are_those_of_the_library() -> None:
    """Each entry of a session's configuration that the guide names is read by the library."""
    source = (ROOT / "coreml" / "kernel" / "ort" / "register.cpp").read_text(encoding="utf-8")
    told = set(re.findall(r"mobilemoe\.(threads|precision|[a-z_]+)(?=`|\\\\?\")", GUIDE))
    assert told == {"threads", "precision"}
    for name in told:
        assert f'"mobilemoe.{name}"' in source
