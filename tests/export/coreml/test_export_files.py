"""An export is there whole, or not at all, and nothing else is touched."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from package_edits import spec_of

from mobilemoe_mlx import all_or_none
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml import package as package_module
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml

OPTIONS = ExportOptions(context=64, prefill_block=16)


@pytest.fixture(scope="module")
def package(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the INT4 fixture; do not write into it."""
    return export_coreml(int4_folder, tmp_path_factory.mktemp("x") / "S.mlpackage", OPTIONS).package


def test_existing_output_needs_force(int4_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.mlpackage"
    first = export_coreml(int4_folder, out, OPTIONS)
    before = (first.resources / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        export_coreml(int4_folder, out, OPTIONS)
    assert (first.resources / "manifest.json").read_bytes() == before
    export_coreml(int4_folder, out, ExportOptions(context=32, prefill_block=8), force=True)
    assert json.loads((first.resources / "manifest.json").read_text())["context"] == 32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x-resources", "x.mlpackage"]


def test_what_only_looks_like_an_export_is_never_replaced(
    int4_folder: Path, tmp_path: Path, package: Path
) -> None:
    """A package of somebody else's, and a folder with a manifest.json of another kind."""
    foreign = tmp_path / "x.mlpackage"
    shutil.copytree(package, foreign)
    spec = spec_of(foreign)
    spec.description.metadata.userDefined.clear()
    (foreign / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(UserError, match="not an export"):
        export_coreml(int4_folder, foreign, OPTIONS, force=True)
    (tmp_path / "y-resources").mkdir()
    (tmp_path / "y-resources" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(UserError, match="not an export"):
        export_coreml(int4_folder, tmp_path / "y.mlpackage", OPTIONS, force=True)


@pytest.mark.parametrize("name", ["x.mlpackage", "x-resources"])
def test_what_is_no_export_is_never_replaced(int4_folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an export"):
        export_coreml(int4_folder, tmp_path / "x.mlpackage", OPTIONS, force=True)
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_output_must_be_a_package(int4_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.mlpackage"):
        export_coreml(int4_folder, tmp_path / "x.mlmodel", OPTIONS)


def test_checkpoint_inside_the_output_is_refused(int4_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(int4_folder, tmp_path / "x-resources" / "checkpoint")
    manifest = {"format": "mobilemoe-coreml"}
    (tmp_path / "x-resources" / "manifest.json").write_text(json.dumps(manifest))
    source = tmp_path / "x-resources" / "checkpoint"
    with pytest.raises(UserError, match="contains the source"):
        export_coreml(source, tmp_path / "x.mlpackage", OPTIONS, force=True)


def test_output_inside_what_is_read_is_refused(int4_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is inside .*, which is read"):
        export_coreml(int4_folder, int4_folder / "x.mlpackage", OPTIONS)
    adapter = tmp_path / "adapter"
    with pytest.raises(UserError, match=r"is inside .*adapter, which is read"):
        export_coreml(int4_folder, adapter / "x.mlpackage", OPTIONS, adapters=[(adapter, 1.0)])


def test_too_little_disk_space(
    int4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="MB free"):
        export_coreml(int4_folder, tmp_path / "deep" / "er" / "x.mlpackage", OPTIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("moe", "limit"), [("core-ops", 50_000), ("core-ops", 150_000), ("custom-layer", 50_000)]
)
def test_a_disk_that_fills_while_the_package_is_written(
    int4_folder: Path, tmp_path: Path, moe: str, limit: int
) -> None:
    """The real writers meet a limit of the size of files: of the weights, then of the program."""
    program = (
        "import resource, sys; from mobilemoe_mlx.cli.main import main;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2);"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = ["export", "coreml", str(int4_folder), str(tmp_path / "x.mlpackage"), "--moe", moe]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--context", "32", "--prefill-block", "8"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"mobilemoe: {tmp_path / 'x.mlpackage'} could not be written")
    assert not list(tmp_path.iterdir())


def test_a_restoration_that_fails_keeps_the_earlier_export(
    int4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.mlpackage"
    export_coreml(int4_folder, out, OPTIONS)
    before = (out / "Manifest.json").read_bytes()

    def fail_at_the_package(source: Path, target: Path, moved: list) -> None:
        if target == out:
            monkeypatch.setattr(all_or_none.os, "rename", full_disk)
            raise OSError(5, "Input/output error")
        all_or_none.os.rename(source, target)
        moved.append((source, target))

    monkeypatch.setattr(all_or_none, "_move", fail_at_the_package)
    with pytest.raises(UserError, match=r"it is in .*/old"):
        export_coreml(int4_folder, out, OPTIONS, force=True)
    (kept,) = tmp_path.glob(".*/old/x.mlpackage/Manifest.json")
    assert kept.read_bytes() == before


@pytest.mark.parametrize("where", ["named", "older"])
def test_the_template_that_chats_use_is_exported(
    int4_folder: Path, tmp_path: Path, where: str
) -> None:
    folder = Path(shutil.copytree(int4_folder, tmp_path / "in"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template")
    if where == "named":
        named = [("tool_use", "{{ 1 }}"), ("default", template)]
        settings["chat_template"] = [{"name": n, "template": t} for n, t in named]
    else:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_coreml(folder, tmp_path / "x.mlpackage", OPTIONS)
    assert (tmp_path / "x-resources" / "chat_template.jinja").read_text() == template


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["resources.write_manifest", "write_companions"])
@pytest.mark.parametrize(
    ("how", "seen"), [(full_disk, UserError), (interrupted, KeyboardInterrupt)]
)
def test_a_failure_leaves_what_was_there(
    int4_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    how: Callable[..., None],
    seen: type[BaseException],
) -> None:
    out = tmp_path / "x.mlpackage"
    done = export_coreml(int4_folder, out, OPTIONS)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(f"{package_module.__name__}.{when}", how)
    with pytest.raises(seen):
        export_coreml(int4_folder, out, OPTIONS, force=True)
    with pytest.raises(seen):
        export_coreml(int4_folder, tmp_path / "y.mlpackage", OPTIONS)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert done.package.is_dir()


def test_the_second_rename_failing_restores_the_first(
    int4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.mlpackage"
    export_coreml(int4_folder, out, OPTIONS)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    rename = all_or_none._move

    def fail_at_the_package(source: Path, target: Path, moved: list) -> None:
        if target == out:
            raise OSError(5, "Input/output error")
        rename(source, target, moved)

    monkeypatch.setattr(all_or_none, "_move", fail_at_the_package)
    with pytest.raises(UserError, match="could not be written"):
        export_coreml(int4_folder, out, ExportOptions(context=32, prefill_block=8), force=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_an_interruption_between_two_renames_loses_nothing(
    int4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "x.mlpackage"
    export_coreml(int4_folder, out, OPTIONS)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    rename, count = all_or_none.os.rename, 0

    def interrupted_after(source: Path, target: Path) -> None:
        nonlocal count
        rename(source, target)
        count += 1
        if count == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(all_or_none.os, "rename", interrupted_after)
    with pytest.raises(KeyboardInterrupt):
        export_coreml(int4_folder, out, ExportOptions(context=32, prefill_block=8), force=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_kill_between_two_renames_is_made_good(int4_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.mlpackage"
    export_coreml(int4_folder, out, OPTIONS)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    work = tmp_path / ".x.mlpackage.partial"
    (work / "old").mkdir(parents=True)
    for name in ("x.mlpackage", "x-resources"):  # as `kill -9` can leave them
        (tmp_path / name).rename(work / "old" / name)
    with pytest.raises(UserError, match=r"tokenizer\.json"):  # the next export, which fails
        export_coreml(broken(int4_folder, tmp_path / "broken"), out, OPTIONS)
    shutil.rmtree(tmp_path / "broken")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def broken(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    (copy / "tokenizer.json").write_text("garbage")
    return copy


def test_two_exports_at_once(int4_folder: Path, tmp_path: Path) -> None:
    work = tmp_path / ".x.mlpackage.partial"
    with (
        all_or_none._held_alone(work, tmp_path / "x.mlpackage"),
        pytest.raises(UserError, match="Another process writes x"),
    ):
        export_coreml(int4_folder, tmp_path / "x.mlpackage", OPTIONS)
    export_coreml(int4_folder, tmp_path / "x.mlpackage", OPTIONS)
    assert not work.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing(int4_folder: Path, tmp_path: Path, number: int) -> None:
    program = (
        "import os, sys; from mobilemoe_mlx.cli.main import main;"
        "from mobilemoe_mlx.export.coreml import package;"
        f"package.resources.write_manifest = lambda *a: os.kill(os.getpid(), {int(number)});"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = ["export", "coreml", str(int4_folder), str(tmp_path / "x.mlpackage")]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--context", "32", "--prefill-block", "8"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x.mlpackage", "loop/x.mlpackage"])
def test_paths_that_lead_nowhere(
    int4_folder: Path,
    tmp_path: Path,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert main(["export", "coreml", str(int4_folder), path]) == 2
    assert capsys.readouterr().err.startswith("mobilemoe: ")
