"""`mobilemoe verify`: a good package passes, and every wrong one is caught."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coremltools.proto import Model_pb2
from package_edits import place_of, renamed, spec_path

from mobilemoe_mlx.cli import verify as verify_command
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.verify.cases import CASES
from mobilemoe_mlx.verify.verdict import Verdict
from mobilemoe_mlx.verify.verdict_text import as_text
from mobilemoe_mlx.verify.verify import verify_package

# A context that is no multiple of the block: the last block has to start earlier.
OPTIONS = ExportOptions(context=53, prefill_block=16)


@pytest.fixture(scope="module")
def good(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the INT4 fixture; do not write into it."""
    folder = tmp_path_factory.mktemp("good")
    return export_coreml(int4_folder, folder / "S.mlpackage", OPTIONS).package


@pytest.fixture(scope="module")
def report(good: Path, int4_folder: Path) -> Verdict:
    return verify_package(good, int4_folder)


def test_a_good_package_passes(report: Verdict) -> None:
    assert report.passed
    assert "proved" in as_text(report)
    assert report.files.checked > 5
    # 2 layers x (5 vectors and matrices without scales + 9 packed with scales) + embedding + norm
    assert report.weights.tensors == 2 * (4 + 2 * 9) + 3
    names = [(case.arithmetic, case.case) for case in report.cases]
    assert names == [
        *(("float32", case) for case in ("short", "long", "full", "chat", "routing")),
        *(("declared", case) for case in ("short", "long", "full", "chat")),
    ]


def test_float32_arithmetic_leaves_nothing_to_hide_behind(report: Verdict) -> None:
    for case in report.cases:
        error = case.logits.max
        # The two arithmetics are told apart: rounding shows in one and not in the other.
        assert error < 1e-5 if case.arithmetic == "float32" else error > 1e-5


def test_prompts_and_decoding_reach_the_end_of_the_context(report: Verdict) -> None:
    full = [case for case in report.cases if case.case == "full"]
    assert all(case.tokens == OPTIONS.context for case in full)
    assert all(case.decoded == 4 for case in full)
    short = next(case for case in report.cases if case.case == "short")
    long = next(case for case in report.cases if case.case == "long")
    block = OPTIONS.prefill_block
    assert short.tokens - short.decoded < block < 2 * block < long.tokens - long.decoded


def test_greedy_text_is_the_same(report: Verdict) -> None:
    assert report.greedy is not None
    assert report.greedy.generated == report.greedy.expected
    assert len(report.greedy.generated) == 24


def test_all_logits_are_compared(int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(context=32, prefill_block=8, logits="all")
    package = export_coreml(int4_folder, tmp_path / "a.mlpackage", options).package
    report = verify_package(package, int4_folder, greedy_tokens=4)
    assert report.passed
    assert all(case.rows == case.tokens for case in report.cases)


def test_a_rounded_bf16_checkpoint(report: Verdict, bf16_folder: Path, tmp_path: Path) -> None:
    package = export_coreml(bf16_folder, tmp_path / "b.mlpackage", OPTIONS, quantize=True).package
    rounded = verify_package(package, bf16_folder, cases=["short"], greedy_tokens=4)
    assert rounded.passed
    assert "bit for bit the checkpoint's, rounded to nearest INT4" in as_text(rounded)
    assert as_text(report).count("rounded to nearest") == 0


def test_a_package_for_ios_26(int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(context=32, prefill_block=8, target="iOS26")
    package = export_coreml(int4_folder, tmp_path / "n.mlpackage", options).package
    assert verify_package(package, int4_folder, cases=["long"], greedy_tokens=4).passed


@pytest.fixture
def mutable(good: Path, tmp_path: Path) -> Path:
    """A copy of the package alone: no checksum may be what catches a mutation."""
    shutil.copytree(good, tmp_path / "S.mlpackage")
    return tmp_path / "S.mlpackage"


def test_checksums_catch_too(good: Path, int4_folder: Path, tmp_path: Path) -> None:
    for path in good.parent.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    (tmp_path / "S-resources" / "tokenizer.json").write_text("{}")
    (tmp_path / "S.mlpackage" / "Data" / "stowaway").write_text("x")
    (tmp_path / "S-resources" / "chat_template.jinja").unlink()
    report = verify_package(tmp_path / "S.mlpackage", int4_folder, cases=[], greedy_tokens=0)
    problems = "\n".join(report.files.problems)
    assert not report.passed
    assert "tokenizer.json has" in problems
    assert "stowaway is in the package" in problems
    assert "chat_template.jinja is missing" in problems


def with_resources(package: Path, folder: Path) -> Path:
    """A copy of an export, package and resources, in `folder`."""
    for path in package.parent.iterdir():
        shutil.copytree(path, folder / path.name)
    return folder / package.name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context", 54),
        ("logits", "all"),
        ("tokens", {"bos": 1, "eos": [0]}),
        ("functions", {}),
        ("functions", {"decode": {"inputs": {"tokens": {"dtype": "float16"}}}}),
        ("quantization", {"qmin": -7}),
        ("package", "other.mlpackage"),
        ("sizes", {"key_value_cache": 1}),
        ("sizes", None),
    ],
)
def test_the_manifest_must_be_of_this_package(
    good: Path, int4_folder: Path, tmp_path: Path, name: str, value: object
) -> None:
    """An app feeds what the manifest says, which no checksum covers."""
    package = with_resources(good, tmp_path)
    path = tmp_path / "S-resources" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {name: value}))
    report = verify_package(package, int4_folder, cases=[], greedy_tokens=0)
    assert not report.passed
    assert any(f"manifest.json says {name}" in problem for problem in report.files.problems)


def without_tokenizer(manifest: dict[str, Any], resources: Path) -> None:
    """An app would load a file that nothing vouches for."""
    del manifest["files"]["S-resources/tokenizer.json"]
    (resources / "tokenizer.json").write_text("{}")


def other_tokenizer(manifest: dict[str, Any], resources: Path) -> None:
    (resources / "tokenizer.json").write_text("{}")
    listed = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    manifest["files"]["S-resources/tokenizer.json"] = listed


def stowaway(manifest: dict[str, Any], resources: Path) -> None:
    (resources / "more").mkdir()
    (resources / "more" / "stowaway").write_text("x")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_tokenizer, "S-resources/tokenizer.json is in the resources, but not in manifest"),
        (other_tokenizer, "S-resources/tokenizer.json is not the checkpoint's"),
        (stowaway, "S-resources/more/stowaway is in the resources, but not in manifest"),
    ],
)
def test_the_resources_are_those_that_the_manifest_lists(
    good: Path,
    int4_folder: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any], Path], None],
    problem: str,
) -> None:
    package = with_resources(good, tmp_path)
    path = tmp_path / "S-resources" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest, path.parent)
    path.write_text(json.dumps(manifest))
    report = verify_package(package, int4_folder, cases=[], greedy_tokens=0)
    assert not report.passed
    assert any(problem in found for found in report.files.problems), report.files.problems


def test_the_description_must_be_of_this_program(mutable: Path, int4_folder: Path) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(mutable).read_bytes())
    spec.description.metadata.userDefined["mobilemoe.prefill_block"] = "32"
    spec_path(mutable).write_bytes(spec.SerializeToString())
    with pytest.raises(UserError, match="says of itself prefill_block 32, but its program is of 1"):
        verify_package(mutable, int4_folder)


def test_weights_that_nothing_uses_are_found(mutable: Path, int4_folder: Path) -> None:
    path, offset = place_of(mutable, "layers_1_moe_norm", "val")
    raw = bytearray(path.read_bytes())
    blob = raw[offset - 64 : offset + 256]
    blob[16:24] = (len(raw) + 64).to_bytes(8, "little")  # where its data is
    raw[0:4] = (int.from_bytes(raw[0:4], "little") + 1).to_bytes(4, "little")
    path.write_bytes(raw + blob)
    report = verify_package(mutable, int4_folder, cases=[], greedy_tokens=0)
    assert report.weights.problems == (
        f"weight.bin has 256 bytes at {len(raw)} that no operation uses",
    )


def test_a_package_without_its_weight_file(mutable: Path, int4_folder: Path) -> None:
    shutil.rmtree(spec_path(mutable).with_name("weights"))
    with pytest.raises(UserError, match="without its weight file"):
        verify_package(mutable, int4_folder)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda spec: setattr(spec.description, "defaultFunctionName", "x"), "default function"),
        (lambda spec: renamed(spec, "value_cache", "values"), "value_cache is None"),
        (lambda spec: renamed(spec, "key_cache", "keys"), "no tokens or no key_cache"),
        (lambda spec: renamed(spec, "tokens", "ids"), "no tokens or no key_cache"),
        (lambda spec: renamed(spec, "logits", "scores"), "logits is None"),
        (lambda spec: renamed(spec, "layers_1_hidden", "h"), "layers_1_hidden is None"),
    ],
)
def test_another_interface(
    mutable: Path, int4_folder: Path, edit: Callable[[Any], None], words: str
) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(mutable).read_bytes())
    edit(spec)
    spec_path(mutable).write_bytes(spec.SerializeToString())
    with pytest.raises(UserError, match=words):
        verify_package(mutable, int4_folder)


# -- the command and its mistakes -------------------------------------------------------------


def test_command(
    good: Path, int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    command = ["verify", str(good), "--against", str(int4_folder), "--case", "short"]
    assert main([*command, "--greedy-tokens", "2", "--json", str(path)]) == 0
    assert "bit for bit" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["passed"] and content["cases"][0]["passed"]
    assert content["cases"][0]["limit"]["value"] == 1e-4


def test_a_package_without_its_resources_is_not_called_proved(
    mutable: Path, int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(mutable), "--against", str(int4_folder), "--case", "short"]
    command += ["--greedy-tokens", "0", "--json", str(tmp_path / "verdict.json")]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "NOT proved as a whole" in out and "S-resources/manifest.json" in out
    assert "What could be checked holds: weights, short." in out
    assert " is proved" not in out
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["passed"] and not verdict["proved"]


def test_it_says_what_was_not_asked_for(
    good: Path, int4_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(good), "--against", str(int4_folder), "--case", "short"]
    assert main([*command, "--greedy-tokens", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{good} (core-ops)\nagainst {int4_folder}\n")
    assert "This much is proved: files, weights, short." in captured.out
    assert "Not asked for: long, full, chat, routing, greedy text." in captured.out
    said = captured.err.splitlines()
    assert said[0].startswith("this takes ")
    assert [line.partition(",")[0] for line in said[1:] if line.startswith("[")] == [
        "[1/3] files and weights",
        "[2/3] short in float32 arithmetic",
        "[3/3] short in declared arithmetic",
    ]


def test_what_macos_leaves_beside_files_is_no_part_of_an_export(
    good: Path, int4_folder: Path, tmp_path: Path
) -> None:
    package = with_resources(good, tmp_path)
    for folder in (package, package / "Data", tmp_path / "S-resources"):
        for path in [p for p in folder.iterdir() if p.is_file()]:
            (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        (folder / ".DS_Store").write_bytes(b"\0")
    report = verify_package(package, int4_folder, cases=[], greedy_tokens=0)
    assert report.files.passed and report.files.manifest


def test_marks_at_the_beginning_of_json_files(
    good: Path, int4_folder: Path, tmp_path: Path
) -> None:
    package = with_resources(good, tmp_path)
    for path in (package / "Manifest.json", tmp_path / "S-resources" / "manifest.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    report = verify_package(package, int4_folder, cases=[], greedy_tokens=0)
    # The mark itself changes the bytes of a file that the manifest lists.
    assert report.files.problems == (
        f"S.mlpackage/Manifest.json has {(package / 'Manifest.json').stat().st_size} bytes, not "
        f"{(good / 'Manifest.json').stat().st_size}",
    )


def test_the_home_folder(good: Path, int4_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(good.parent))
    assert verify_package("~/S.mlpackage", int4_folder, cases=[], greedy_tokens=0).files.passed


def test_the_command_offers_the_cases_that_there_are() -> None:
    """It names them itself, so that its help needs no seconds of imports."""
    assert verify_command.CASES == CASES


def test_command_fails_for_a_wrong_package(mutable: Path, int4_folder: Path) -> None:
    path, offset = place_of(mutable, "layers_0_qkv", "data")
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 0x80
    path.write_bytes(raw)
    command = ["verify", str(mutable), "--against", str(int4_folder), "--case", "short"]
    assert main(command) == 1


def test_another_model(good: Path, bf16_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bf16_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 1234.0}))
    with pytest.raises(UserError, match=r"rope_theta is 500000\.0 in the package and 1234\.0"):
        verify_package(good, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cases": ["shrt"]}, "did you mean 'short'"),
        ({"prompt": "word " * 100}, "context is 53"),
        ({"greedy_tokens": -1}, "0 or more"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_mistakes(good: Path, int4_folder: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        verify_package(good, int4_folder, **changes)


def test_a_report_that_cannot_be_written_is_refused_at_once(
    good: Path, int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "no" / "report.json"):
        command = ["verify", str(good), "--against", str(int4_folder), "--json", str(path)]
        assert main(command) == 2
        captured = capsys.readouterr()
        assert "--json" in captured.err and "files and weights" not in captured.err


def test_the_smallest_context_needs_no_prompt(int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(context=4, prefill_block=4)
    package = export_coreml(int4_folder, tmp_path / "s.mlpackage", options).package
    assert verify_package(package, int4_folder).passed


def test_not_a_package(tmp_path: Path, int4_folder: Path) -> None:
    package, file = tmp_path / "it.mlpackage", tmp_path / "file"
    package.mkdir()
    (package / "Data").mkdir()
    file.touch()
    (tmp_path / "empty").mkdir()
    for path, what in (
        (tmp_path / "empty", "an empty folder"),
        (tmp_path, "a folder of other things"),
        (int4_folder, "a checkpoint"),
        (package, "a folder without the Manifest.json"),
        (file, "a file"),
    ):
        with pytest.raises(UserError, match=f"is {what}.*, and no export"):
            verify_package(path, int4_folder)


def test_a_foreign_package(good: Path, int4_folder: Path, mutable: Path) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(mutable).read_bytes())
    spec.description.metadata.userDefined.clear()
    spec_path(mutable).write_bytes(spec.SerializeToString())
    with pytest.raises(UserError, match="no export of ours"):
        verify_package(mutable, int4_folder)
