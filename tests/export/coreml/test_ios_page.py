"""The code of docs/ios.md: the Swift compiles and feeds a model rightly, the commands work.

Core ML and swift-transformers are stood in for by the files in ios_page/, so the Swift runs where
there is a Swift compiler for Linux.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.verify.calls import plan

PAGE = Path(__file__).parents[3] / "docs" / "ios.md"
STAND_INS = Path(__file__).parent / "ios_page"
SWIFTC = shutil.which("swiftc")
VOCABULARY, STOPS = 97, (3, 50)

needs_swift = pytest.mark.skipif(
    SWIFTC is None or sys.platform != "linux", reason="needs a Swift compiler on Linux"
)


def blocks(language: str) -> list[str]:
    """Those that stand for themselves; blocks over the package are compiled in tests/swift."""
    page = re.sub(
        r"<!-- of the package -->\n```.*?^```", "", PAGE.read_text("utf-8"), flags=re.M | re.S
    )
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's Swift as a program, in a folder of its own."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "page.swift").write_text("\n".join(blocks("swift")))
    for name in ("CoreML", "Tokenizers"):
        command = [SWIFTC, "-parse-as-library", "-module-name", name, "-emit-object", "-o"]
        command += [f"{name}.o", "-emit-module", "-emit-module-path", f"{name}.swiftmodule"]
        subprocess.run([*command, STAND_INS / f"{name}.swift"], cwd=folder, check=True)
    command = [SWIFTC, "-I", ".", "page.swift", STAND_INS / "main.swift", "CoreML.o"]
    subprocess.run([*command, "Tokenizers.o", "-o", "app"], cwd=folder, check=True)
    return folder


@needs_swift
@pytest.mark.parametrize("mode", ["5", "6"])
@pytest.mark.parametrize("isolation", ["MainActor", "nonisolated"])
def test_the_swift_compiles_in_every_mode(app: Path, mode: str, isolation: str) -> None:
    """Without a warning, also where Xcode puts all code on the main actor."""
    modes = ["-swift-version", mode, "-default-isolation", isolation, "-warnings-as-errors"]
    command = [SWIFTC, "-I", ".", "-parse-as-library", *modes, "-typecheck", "page.swift"]
    done = subprocess.run(command, cwd=app, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def next_token(tokens: list[int]) -> int:
    """What the made-up model of ios_page/CoreML.swift finds most likely."""
    return sum(token * (index + 1) for index, token in enumerate(tokens)) % VOCABULARY


def continued(tokens: list[int], context: int) -> list[int]:
    found = list(tokens)
    while (token := next_token(found)) not in STOPS and len(found) < context:
        found.append(token)
    return found[len(tokens) :]


def run(app: Path, package: Path, conversations: list[list[int]], options: ExportOptions) -> Any:
    """The program's outcome with the manifest of `package`, whose stop tokens are STOPS."""
    name = package.stem
    shutil.rmtree(app / f"{name}-resources", ignore_errors=True)
    shutil.copytree(package.with_name(f"{name}-resources"), app / f"{name}-resources")
    path = app / f"{name}-resources" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"tokens": {"bos": 1, "eos": list(STOPS)}}))
    (app / f"{name}.mlmodelc").mkdir(exist_ok=True)
    scenario = {
        "name": name,
        "conversations": conversations,
        "block": options.prefill_block,
        "context": options.context,
        "vocabulary": VOCABULARY,
        "all": options.logits == "all",
    }
    done = subprocess.run(
        [app / "app"], input=json.dumps(scenario), capture_output=True, text=True, cwd=app
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_swift
@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize(("block", "context"), [(8, 30), (2, 4), (16, 16)])
def test_the_swift_answers_and_makes_the_calls_of_the_plan(
    app: Path, int4_folder: Path, tmp_path: Path, logits: Any, block: int, context: int
) -> None:
    options = ExportOptions(context=context, prefill_block=block, logits=logits)
    package = export_coreml(int4_folder, tmp_path / "X.mlpackage", options).package
    prompts = [[7] * length for length in {1, 2, block, min(block + 1, context), context - 1}]
    for prompt in prompts:
        outcome = run(app, package, [prompt], options)
        answer = continued(prompt, context)
        assert outcome["answers"] == [answer]
        assert outcome["heard"] == answer
        assert outcome["asked"] == " ".join(map(str, answer))
        assert outcome["isBusyTold"]
        total = len(prompt) + len(answer)
        wanted = [
            ("decode" if call.is_decode else "prefill", call.start, call.length)
            for call in plan(len(prompt), total, block, context)
        ]
        text = prompt + answer
        made = []
        for call in outcome["calls"][0]:
            end = total if call["function"] == "decode" else len(prompt)
            length = 1 if call["function"] == "decode" else min(block, end - call["position"])
            assert call["tokens"][:length] == text[call["position"] :][:length]
            made.append((call["function"], call["position"], call.get("length", length)))
        assert made == wanted


@needs_swift
def test_the_next_turn_feeds_what_is_new(app: Path, int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(context=64, prefill_block=8)
    package = export_coreml(int4_folder, tmp_path / "X.mlpackage", options).package
    first = [11, 12, 13]
    second = [*first, *continued(first, 24), 14, 15]
    other = [11, 40, 41]
    conversations = [first, second, other, other]
    outcome = run(app, package, conversations, options)
    assert outcome["answers"] == [continued(tokens, 64) for tokens in conversations]
    starts = [calls[0]["position"] for calls in outcome["calls"]]
    fed = first + continued(first, 64)
    known = next(i for i, t in enumerate(second) if i >= len(fed) or fed[i] != t)
    assert starts == [0, known, 1, 2]


def test_the_commands_work_as_typed(
    quickstart_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the folder that a quickstart has run in."""
    shutil.copytree(quickstart_home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    commands = [line for line in blocks("sh")[0].splitlines() if line]
    assert [shlex.split(command)[1] for command in commands] == ["export", "verify", "info"]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "home" / "MobileMoE-tiny-resources" / "manifest.json").is_file()


def test_the_swift_names_no_number_of_one_package() -> None:
    code = "\n".join(blocks("swift"))
    assert not re.search(r"\b(256|2048|1280\d\d)\b", code)
    assert "prefillBlock" in code and "manifest.json" in code
