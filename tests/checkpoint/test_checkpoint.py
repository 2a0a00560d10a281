"""Loading and saving: nothing is lost, nothing half-written stays."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_files import assert_same_bits, random_bits, read, write
from mlx.utils import tree_flatten

import mobilemoe_mlx
from mobilemoe_mlx.checkpoint import load_save, tensor_file
from mobilemoe_mlx.checkpoint.check import check
from mobilemoe_mlx.checkpoint.layouts import Layout, expected_tensors, parameter_shapes
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.checkpoint.tensor_file import Tensor, encode_header
from mobilemoe_mlx.config import PRESETS, ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.int4_rounding import as_quantized, quantize_parameters
from mobilemoe_mlx.model import Model


def args_for(args: ModelArgs, layout: Layout) -> ModelArgs:
    return as_quantized(args) if layout is Layout.INT4 else args


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("layout", "dtype", "widest"),
    [
        (Layout.FLOAT, mx.float32, False),
        (Layout.FLOAT, mx.float32, True),
        (Layout.FLOAT, mx.bfloat16, False),
        (Layout.INT4, mx.float32, False),
        (Layout.INT4, mx.float16, True),
    ],
)
def test_published_to_mlx_to_published_keeps_every_bit(
    tmp_path: Path,
    tiny_args: ModelArgs,
    layout: Layout,
    dtype: mx.Dtype,
    widest: bool,
    sharded: bool,
) -> None:
    tensors = random_bits(tiny_args, layout, widest)
    source = write(tmp_path / "in", tensors, args_for(tiny_args, layout), 3 if sharded else 1)
    model = load_save.load_model(source, dtype)
    limit = 100_000 if sharded else 10**9
    load_save.save(model, tmp_path / "out", max_shard_bytes=limit)
    assert_same_bits(read(tmp_path / "out"), tensors)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) is sharded
    assert check(tmp_path / "out") == []


def test_experts_may_have_a_trailing_weight(tmp_path: Path, tiny_args: ModelArgs) -> None:
    tensors = random_bits(tiny_args, Layout.FLOAT, False)
    named = {n + (".weight" if "experts." in n else ""): t for n, t in tensors.items()}
    assert named.keys() != tensors.keys()
    model = load_save.load_model(write(tmp_path / "in", named, tiny_args))
    load_save.save(model, tmp_path / "out")
    assert_same_bits(read(tmp_path / "out"), tensors)


@pytest.mark.parametrize("kind", ["bf16", "int4"])
def test_files_are_those_of_the_formats_own_library(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    theirs = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(read(folder), theirs, {"format": "pt"})
    assert (folder / "model.safetensors").read_bytes() == theirs.read_bytes()


def test_float32_values_are_rounded_to_nearest_bfloat16(
    tmp_path: Path, tiny_args: ModelArgs
) -> None:
    model = Model(tiny_args)
    load_save.save(model, tmp_path / "out")
    expected = torch.tensor(np.array(model.model.embed_tokens.weight)).to(torch.bfloat16)
    assert torch.equal(read(tmp_path / "out")["model.embed_tokens.weight"], expected)


def test_parameter_shapes_are_the_models(tiny_args: ModelArgs) -> None:
    for args in (tiny_args, PRESETS["tiny"], PRESETS["M"]):
        shapes = {n: tuple(p.shape) for n, p in tree_flatten(Model(args).parameters())}
        assert parameter_shapes(args) == shapes


def test_the_int4_layout_gives_the_published_size() -> None:
    tensors = {
        name: Tensor(expected.dtypes[0], expected.shape, lambda: mx.array(0))
        for name, expected in expected_tensors(PRESETS["S"], Layout.INT4).items()
    }
    header = encode_header(tensors, {"format": "pt"})
    assert (
        len(header) + sum(t.nbytes for t in tensors.values()) == 713_916_240
    )  # the published size


def test_loaded_int4_values_are_code_times_scale(int4_folder: Path) -> None:
    """Decoded here by the words of docs/model.md, in numpy, against MLX's own dequantisation."""
    stored = read(int4_folder)
    model = load_save.load_model(int4_folder)
    layer = model.model.layers[1]
    at = "model.layers.1."
    for module, codes, scale in (
        (model.model.embed_tokens, "model.embed_tokens.qweight", "model.embed_tokens.weight_scale"),
        (
            layer.self_attn.q_proj,
            f"{at}self_attn.q_proj.qweight",
            f"{at}self_attn.q_proj.weight_scale",
        ),
        (
            layer.feed_forward.experts.gate_up_proj,
            f"{at}feed_forward.experts.gate_up_qweight",
            f"{at}feed_forward.experts.gate_up_scale",
        ),
    ):
        packed = stored[codes].numpy().astype(np.int32)
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1)
        signed = np.where(nibbles > 7, nibbles - 16, nibbles)
        signed = signed.reshape(*packed.shape[:-1], -1)
        scales = np.repeat(stored[scale].numpy().astype(np.float32), 32, axis=-1)
        values = mx.dequantize(
            module.weight,
            module.scales.astype(mx.float32),
            module.biases.astype(mx.float32),
            group_size=32,
            bits=4,
        )
        np.testing.assert_array_equal(np.array(values), signed * scales)


def test_load_gives_a_tokenizer_that_stops_at_the_configs_ids(int4_folder: Path) -> None:
    model, tokenizer = mobilemoe_mlx.load(int4_folder)
    ids = tokenizer.encode("def wrap(text):")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "def wrap(text):"
    assert set(model.args.eos_token_id) <= set(tokenizer.eos_token_ids)
    assert model(mx.array([ids])).shape == (1, len(ids), model.args.vocab_size)


def test_a_folder_without_tokenizer_gives_a_model_only(
    tmp_path: Path, tiny_args: ModelArgs
) -> None:
    write_random_checkpoint(tmp_path / "x", tiny_args, quantized=False)
    load_save.load_model(tmp_path / "x")
    with pytest.raises(UserError, match="tokenizer"):
        mobilemoe_mlx.load(tmp_path / "x")


def test_compute_types(bf16_folder: Path, int4_folder: Path) -> None:
    model = load_save.load_model(bf16_folder, mx.bfloat16)
    assert model(mx.array([[1, 2]])).dtype == mx.bfloat16
    assert load_save.load_model(bf16_folder)(mx.array([[1, 2]])).dtype == mx.float32
    assert load_save.load_model(int4_folder, mx.float16)(mx.array([[1, 2]])).dtype == mx.float16
    for folder, wrong in ((int4_folder, mx.bfloat16), (bf16_folder, mx.float16)):
        with pytest.raises(UserError, match="float32"):
            load_save.load_model(folder, wrong)


@pytest.mark.parametrize("kind", ["bf16", "int4"])
def test_save_keeps_config_metadata_and_companions(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(request.getfixturevalue(f"{kind}_folder"), folder)
    config = json.loads((folder / "config.json").read_text()) | {"some_future_field": [1, "é"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    metadata = {"format": "pt", "made by": "a test"}
    safetensors.torch.save_file(read(folder), folder / "model.safetensors", metadata)
    out = tmp_path / "out"
    load_save.save(load_save.load_model(folder), out)
    assert json.loads((out / "config.json").read_text()) == config
    assert (out / "generation_config.json").read_text() == '{"temperature": 0.6}'
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_save_quantized_is_loaded_as_the_rounded_model(
    tmp_path: Path, tiny_args: ModelArgs
) -> None:
    tensors = quantize_parameters(Model(tiny_args).parameters())
    load_save.save_quantized(tensors, tiny_args, tmp_path / "out")
    again = read(tmp_path / "out")
    assert set(again) == set(tensors)
    loaded = load_save.load_model(tmp_path / "out")
    assert loaded.args.quantized
    load_save.save(loaded, tmp_path / "again")
    assert_same_bits(read(tmp_path / "again"), again)


def fail_in_second_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensor_file.write_file

    def full_disk(path: Path, *rest: Any) -> None:
        if "00002" in path.name:
            path.write_bytes(b"begun")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, *rest)

    monkeypatch.setattr("mobilemoe_mlx.checkpoint.folder.write_file", full_disk)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, bf16_folder: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    model = load_save.load_model(bf16_folder)
    out = tmp_path / "out"
    if overwrite:
        load_save.save(model, out)
    before = {p.name: p.read_bytes() for p in out.glob("*")}
    fail_in_second_shard(monkeypatch)
    with pytest.raises(UserError, match="No space left"):
        load_save.save(model, out, max_shard_bytes=100_000, overwrite=overwrite)
    assert {p.name: p.read_bytes() for p in out.glob("*")} == before
    assert list(tmp_path.iterdir()) == ([out] if overwrite else [])


def test_overwriting_needs_to_be_asked_for(tmp_path: Path, bf16_folder: Path) -> None:
    model = load_save.load_model(bf16_folder)
    out = tmp_path / "out"
    out.mkdir()
    load_save.save(model, out, max_shard_bytes=100_000)  # an empty folder is fine
    with pytest.raises(UserError, match="not empty"):
        load_save.save(model, out)
    load_save.save(model, out, overwrite=True)
    assert check(out) == []
    assert not list(out.glob("*index*"))
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("rain")
    with pytest.raises(UserError, match="not a model folder"):
        load_save.save(model, tmp_path / "diary", overwrite=True)


def test_a_folder_can_be_saved_over_itself(tmp_path: Path, int4_folder: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(int4_folder, folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    load_save.save(load_save.load_model(folder), folder, overwrite=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_random_checkpoints_depend_on_the_seed_alone(tmp_path: Path, tiny_args: ModelArgs) -> None:
    for name, seed, limit in (("a", 1, 10**9), ("b", 1, 50_000), ("c", 2, 10**9)):
        write_random_checkpoint(
            tmp_path / name, tiny_args, seed, quantized=True, max_shard_bytes=limit
        )
        assert check(tmp_path / name) == []
    assert_same_bits(read(tmp_path / "a"), read(tmp_path / "b"))
    first, other = read(tmp_path / "a"), read(tmp_path / "c")
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_what_a_killed_process_left_is_put_right(tmp_path: Path, int4_folder: Path) -> None:
    """Killed while writing, and killed between the two renames."""
    model = load_save.load_model(int4_folder)
    out, work = tmp_path / "out", tmp_path / ".out.partial"
    load_save.save(model, out)
    for part in ("old", "out"):
        (work / part).mkdir(parents=True)
    out.rename(work / "old" / "out")
    (work / "out" / "model.safetensors").write_bytes(b"begun")
    with pytest.raises(UserError, match="not empty"):
        load_save.save(model, out)
    assert check(out) == []
    load_save.save(model, out, overwrite=True)
    assert list(tmp_path.iterdir()) == [out]
