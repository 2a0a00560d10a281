"""`mobilemoe convert`: bit for bit, accepted by mlx-lm's own commands, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import safetensors.torch
from checkpoint_files import assert_same_bits, read
from mlx_lm.generate import generate_step

import mobilemoe_mlx
from mobilemoe_mlx.checkpoint import load_save, tensor_file
from mobilemoe_mlx.checkpoint.check import check
from mobilemoe_mlx.checkpoint.rewrite import convert
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.quantized import quantize_parameters

KINDS = ["bf16", "int4"]
SHARD = 60_000  # bytes; both tiny checkpoints need several files of this size


@pytest.fixture
def folder(kind: str, request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(f"{kind}_folder"))


@pytest.mark.parametrize("kind", KINDS)
def test_shards_split_and_merge_bit_for_bit(tmp_path: Path, folder: Path) -> None:
    convert(folder, tmp_path / "split", max_shard_bytes=SHARD)
    files = list((tmp_path / "split").glob("*.safetensors"))
    assert len(files) > 2
    assert check(tmp_path / "split") == []
    assert_same_bits(read(tmp_path / "split"), read(folder))
    convert(tmp_path / "split", tmp_path / "merged")
    for path in folder.iterdir():
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_and_back_bit_for_bit(tmp_path: Path, folder: Path) -> None:
    convert(folder, tmp_path / "mlx", to="mlx", max_shard_bytes=SHARD)
    assert check(tmp_path / "mlx") == []
    convert(tmp_path / "mlx", tmp_path / "back")
    for path in folder.iterdir():
        if path.name != "config.json":
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
    configs = [json.loads((f / "config.json").read_text()) for f in (tmp_path / "back", folder)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("kind", KINDS)
def test_load_reads_the_mlx_folder_as_the_same_model(tmp_path: Path, folder: Path) -> None:
    convert(folder, tmp_path / "mlx", to="mlx")
    tokens = mx.array([[5, 6, 7, 300]])
    theirs, _ = mobilemoe_mlx.load(tmp_path / "mlx")
    ours = load_save.load_model(folder)
    assert mx.array_equal(ours(tokens), theirs(tokens)).item()
    load_save.save(theirs, tmp_path / "saved")
    assert_same_bits(read(tmp_path / "saved"), read(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_generate_says_what_we_say(tmp_path: Path, folder: Path, kind: str) -> None:
    """mlx-lm's own command, in its own process; it computes in the stored float type."""
    convert(folder, tmp_path / "mlx", to="mlx")
    prompt, count = "def wrap(text, width):", 12
    command = [sys.executable, "-m", "mlx_lm", "generate", "--trust-remote-code"]
    command += ["--model", str(tmp_path / "mlx"), "--prompt", prompt, "--ignore-chat-template"]
    command += ["--max-tokens", str(count), "--temp", "0", "--verbose", "False"]
    root = str(Path(mobilemoe_mlx.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]

    dtype = mx.float16 if kind == "int4" else mx.bfloat16
    model, tokenizer = mobilemoe_mlx.load(folder, dtype=dtype)
    tokens = []
    for token, _ in generate_step(mx.array(tokenizer.encode(prompt)), model, max_tokens=count):
        if token in tokenizer.eos_token_ids:
            break
        tokens.append(token)
    detokenizer = tokenizer.detokenizer
    for token in tokens:
        detokenizer.add_token(token)
    detokenizer.finalize()
    assert detokenizer.text.strip()
    assert done.stdout.strip() == detokenizer.text.strip()


def test_mlx_lm_refuses_to_run_the_folder_unasked(tmp_path: Path, int4_folder: Path) -> None:
    from mlx_lm.utils import load_model

    convert(int4_folder, tmp_path / "mlx", to="mlx")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(tmp_path / "mlx")


def test_our_load_never_runs_a_folders_code(tmp_path: Path, int4_folder: Path) -> None:
    convert(int4_folder, tmp_path / "mlx", to="mlx")
    trap = tmp_path / "mlx" / "mobilemoe_model.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    mobilemoe_mlx.load(tmp_path / "mlx")
    assert not (tmp_path / "ran").exists()


def test_the_model_file_says_which_package_is_lacking(tmp_path: Path, int4_folder: Path) -> None:
    convert(int4_folder, tmp_path / "mlx", to="mlx")
    code = "import sys; sys.modules['mobilemoe_mlx'] = None; import runpy; "
    code += "runpy.run_path(sys.argv[1])"
    file = tmp_path / "mlx" / "mobilemoe_model.py"
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert "pip install . in the mobilemoe-mlx checkout" in done.stderr


def test_a_scale_rule_that_nothing_reads_is_refused(
    tmp_path: Path, bf16_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(bf16_folder), str(tmp_path / "out"), "--scale-rule", "paper"]
    assert main(command) == 2
    assert "--scale-rule belongs to --quantize" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_quantising_rounds_as_quantize_parameters_does(tmp_path: Path, bf16_folder: Path) -> None:
    model = load_save.load_model(bf16_folder)
    load_save.save_quantized(
        quantize_parameters(model.parameters()), model.args, tmp_path / "whole"
    )
    convert(bf16_folder, tmp_path / "streamed", quantize=True)
    assert_same_bits(read(tmp_path / "streamed"), read(tmp_path / "whole"))
    assert load_save.load_model(tmp_path / "streamed").args.quantized
    with pytest.raises(UserError, match="INT4 already"):
        convert(tmp_path / "streamed", tmp_path / "twice", quantize=True)


@pytest.mark.parametrize("name", ["feed_forward.expert_bias", "input_layernorm.weight"])
def test_what_is_not_finite_is_not_rounded(tmp_path: Path, bf16_folder: Path, name: str) -> None:
    folder = Path(shutil.copytree(bf16_folder, tmp_path / "in"))
    tensors = read(folder)
    tensors[f"model.layers.1.{name}"][0] = float("nan")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} has values that are not finite"):
        convert(folder, tmp_path / "out", quantize=True)
    assert not (tmp_path / "out").exists()


def test_quantising_to_mlx_is_quantising_then_converting(tmp_path: Path, bf16_folder: Path) -> None:
    convert(bf16_folder, tmp_path / "at once", to="mlx", quantize=True)
    convert(bf16_folder, tmp_path / "int4", quantize=True)
    convert(tmp_path / "int4", tmp_path / "in two", to="mlx")
    assert_same_bits(read(tmp_path / "at once"), read(tmp_path / "in two"))


def test_rounding_in_blocks_of_rows_is_rounding_at_once(
    tmp_path: Path, bf16_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(bf16_folder, tmp_path / "a", quantize=True)
    monkeypatch.setattr("mobilemoe_mlx.checkpoint.layouts._BLOCK_ELEMENTS", 1000)
    convert(bf16_folder, tmp_path / "b", quantize=True)
    assert_same_bits(read(tmp_path / "a"), read(tmp_path / "b"))


def test_another_kind_of_quantisation_is_refused(tmp_path: Path, int4_folder: Path) -> None:
    folder = tmp_path / "mlx"
    convert(int4_folder, folder, to="mlx")
    tensors = read(folder)
    name = "model.layers.0.self_attn.q_proj.biases"
    tensors[name][3, 1] *= 0.5
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "mlx"})
    with pytest.raises(UserError, match=f"{name}: not -8 x the scales"):
        convert(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def spoil_scale(folder: Path) -> None:
    tensors = read(folder)
    tensors["model.layers.1.self_attn.v_proj.weight_scale"][0, 0] = float("nan")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def spoil_names(folder: Path) -> None:
    tensors = read(folder)
    tensors["model.final_norm.weight"] = tensors.pop("model.norm.weight")
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def spoil_length(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(spoil_scale, "v_proj"), (spoil_names, "model.final_norm"), (spoil_length, "truncated")],
)
def test_nothing_is_written_from_a_bad_source(
    tmp_path: Path,
    int4_folder: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Any,
    words: str,
) -> None:
    source = tmp_path / "source"
    shutil.copytree(int4_folder, source)
    spoil(source)
    assert main(["convert", str(source), str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, int4_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tensor_file.write_file

    def full_disk(path: Path, *rest: Any) -> None:
        real(path, *rest)
        if "00003" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("mobilemoe_mlx.checkpoint.folder.write_file", full_disk)
    with pytest.raises(UserError, match="No space left"):
        convert(int4_folder, tmp_path / "new" / "out", max_shard_bytes=SHARD)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_source_that_cannot_be_read_is_named(
    tmp_path: Path, int4_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the user may not read it, which the one of the tests may."""
    real = Path.open

    def refused(path: Path, *rest: Any, **options: Any) -> Any:
        if path == int4_folder / "tokenizer_config.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr("shutil.copyfile", lambda source, target: refused(Path(source), "rb"))
    with pytest.raises(
        UserError, match=r"^Cannot read .*tokenizer_config\.json: Permission denied"
    ):
        convert(int4_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing_half_written(
    tmp_path: Path, int4_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mobilemoe_mlx.checkpoint.folder.write_file", interrupted)
    assert main(["convert", str(int4_folder), str(tmp_path / "out")]) == 130
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path, int4_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    command = ["convert", str(int4_folder), out]
    assert main([*command, "--shard-size", "60KB"]) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "not empty" in error and "--overwrite" in error
    assert main([*command, "--overwrite", "--to", "mlx"]) == 0
    assert "--trust-remote-code" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--overwrite", "--shard-size", "many"])
    assert "'many' is no size; write it like 500MB" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--shard-size", "0"]) == 2
    assert (tmp_path / "out" / "mobilemoe_model.py").exists()


def test_a_folder_around_the_source_is_not_overwritten(tmp_path: Path, int4_folder: Path) -> None:
    shutil.copytree(int4_folder, tmp_path / "models" / "source")
    (tmp_path / "models" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="contains the source"):
        convert(tmp_path / "models" / "source", tmp_path / "models", overwrite=True)
    with pytest.raises(UserError, match=r"is inside .*source, which is read"):
        convert(tmp_path / "models" / "source", tmp_path / "models" / "source" / "new")
    (tmp_path / "link").symlink_to(tmp_path / "models" / "source")
    with pytest.raises(UserError, match="source is itself what is read"):
        convert(tmp_path / "models" / "source", tmp_path / "link", overwrite=True)
    assert check(tmp_path / "models" / "source") == []
