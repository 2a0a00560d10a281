"""Downloads that did not finish say so, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.downloads import unfinished
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer import load_tokenizer


def snapshot(root: Path, source: Path) -> Path:
    """`source` as Hugging Face's cache holds it: links to blobs."""
    repo = root / "hub" / "models--acme--mini-moe"
    folder = repo / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abc")
    for path in source.iterdir():
        shutil.copyfile(path, repo / "blobs" / path.name)
        (folder / path.name).symlink_to(f"../../blobs/{path.name}")
    return folder


def index_of_absent_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def one_of_three(folder: Path) -> None:
    tensors = mx.load(str(folder / "model.safetensors"))
    part = {name: array for name, array in tensors.items() if ".layers.0." in name}
    mx.save_safetensors(str(folder / "model-00002-of-00003.safetensors"), part)
    (folder / "model.safetensors").unlink()


def lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 713916240\n"
    (folder / "model.safetensors").write_text(text)


def begun(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.safetensors.part")


def begun_by_hub(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "model.safetensors.abc.incomplete").write_text("")


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_text("")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (index_of_absent_shards, "model-00001-of-00002.safetensors, model-00002-of-00002"),
        (
            one_of_three,
            "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors",
        ),
        (lfs_pointer, "model.safetensors is a pointer of Git LFS, which `git lfs pull`"),
        (begun, "model.safetensors.part was begun"),
        (begun_by_hub, "model.safetensors.abc.incomplete was begun"),
        (emptied, "model.safetensors is empty"),
    ],
)
def test_a_folder_that_was_not_copied_whole(
    bf16_folder: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bf16_folder, folder)
    assert unfinished(folder) is None
    damage(folder)
    with pytest.raises(UserError, match="the download is not finished") as error:
        open_checkpoint(folder)
    assert words in str(error.value)
    assert "copy all files again" in str(error.value)


def weights_absent(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def blob_absent(folder: Path) -> None:
    (folder / "model.safetensors").resolve().unlink()


def blob_begun(folder: Path) -> None:
    blob = (folder / "model.safetensors").resolve()
    (folder / "model.safetensors").unlink()
    blob.rename(f"{blob}.incomplete")


def config_alone(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (weights_absent, "it has no weights"),
        (blob_absent, "model.safetensors leads to nothing"),
        (blob_begun, "model.safetensors.incomplete was begun"),
        (config_alone, "it has no weights"),
        (index_of_absent_shards, "model-00001-of-00002"),
    ],
)
def test_a_snapshot_of_the_hubs_cache(
    bf16_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    folder = snapshot(tmp_path, bf16_folder)
    open_checkpoint(folder)
    damage(folder)
    assert main.main(["generate", str(folder), "--prompt", "hi"]) == 2
    said = capsys.readouterr().err
    assert "the download is not finished" in said
    assert words in said
    assert "`hf download acme/mini-moe`" in said


def test_a_tokenizer_that_was_not_downloaded(bf16_folder: Path, tmp_path: Path) -> None:
    folder = snapshot(tmp_path, bf16_folder)
    (folder / "tokenizer.json").resolve().unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json: the download is not finished"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json"])
def test_a_link_to_nothing_is_no_absent_file(bf16_folder: Path, tmp_path: Path, name: str) -> None:
    """Both files may be absent, but not lost."""
    folder = snapshot(tmp_path, bf16_folder)
    (folder / name).unlink(missing_ok=True)
    open_checkpoint(folder)
    load_tokenizer(folder)
    (folder / name).symlink_to("../../blobs/lost")
    for read in (open_checkpoint, load_tokenizer):
        with pytest.raises(UserError, match=rf"{name} leads to nothing.*hf download acme/mini-moe"):
            read(folder)


def test_an_index_that_names_no_files_is_told_as_such(bf16_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bf16_folder, tmp_path / "model"))
    index = {"weight_map": {"model.norm.weight": 3}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not JSON with a table 'weight_map' of file names"):
        open_checkpoint(folder)


def test_files_of_macos_are_no_weights(bf16_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bf16_folder, folder)
    for name in ("._model.safetensors", "._config.json", "._model-00001-of-00002.safetensors"):
        (folder / name).write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ")
    open_checkpoint(folder)
    assert unfinished(folder) is None
