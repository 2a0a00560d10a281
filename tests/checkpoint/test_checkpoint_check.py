"""Everything wrong with a checkpoint is said, by name, before any of it is used."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_files import Tensors, random_bits, read, write

from mobilemoe_mlx.checkpoint import load_save
from mobilemoe_mlx.checkpoint.check import check, fold_layers, open_checkpoint
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError

# Damage: each entry spoils a BF16 or INT4 folder and names what the list must contain.


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = read(folder)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def move(header: dict[str, Any], name: str, by: int) -> None:
    header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]


def truncate(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


Q = "model.layers.1.self_attn.q_proj"
BIAS = "model.layers.0.feed_forward.expert_bias"
NORM = "model.norm.weight"

DAMAGE: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "truncated": ("bf16", lambda f: truncate(f, 200_000), ["truncated", "Download it again"]),
    "truncated header": ("bf16", lambda f: truncate(f, 100), ["truncated inside its header"]),
    "empty": ("bf16", lambda f: truncate(f, 0), ["too few"]),
    "absurd header": (
        "bf16",
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64),
        ["above the format's limit"],
    ),
    "not JSON": (
        "bf16",
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"nono"),
        ["not valid JSON"],
    ),
    "gap": (
        "bf16",
        lambda f: edit_header(f, lambda h: move(h, NORM, 2)),
        [f"'{NORM}' leaves a gap"],
    ),
    "overlap": (
        "bf16",
        lambda f: edit_header(f, lambda h: move(h, NORM, -2)),
        [f"'{NORM}' overlaps"],
    ),
    "size against shape": (
        "bf16",
        lambda f: edit_header(f, lambda h: h[NORM].update(shape=[65])),
        [f"'{NORM}' has 128 bytes but its shape [65] of BF16 needs 130"],
    ),
    "negative size": (
        "bf16",
        lambda f: edit_header(f, lambda h: h[NORM].update(shape=[-64])),
        ["not a list of sizes"],
    ),
    "missing and unexpected": (
        "bf16",
        lambda f: edit(f, lambda t: t.update({f"{Q}s.weight": t.pop(f"{Q}.weight")})),
        [
            f"'{Q}.weight' is missing (there is '{Q}s.weight'?)",
            f"'{Q}s.weight' is unexpected (did you mean '{Q}.weight'?)",
        ],
    ),
    "several at once": (
        "int4",
        lambda f: edit(
            f,
            lambda t: t.update(
                {
                    NORM: t[NORM][:32].clone(),
                    BIAS: t[BIAS].half(),
                    f"{Q}.weight_scale": t[f"{Q}.weight_scale"].float(),
                    "lm_head.weight": torch.zeros(3),
                    "extra": t.pop("model.layers.0.input_layernorm.weight"),
                }
            ),
        ),
        [
            f"'{NORM}' has the shape [32], expected [64]",
            f"'{BIAS}' has the dtype F16, expected BF16 or F32",
            f"'{Q}.weight_scale' has the dtype F32, expected F16",
            "'lm_head.weight' is unexpected",
            "'extra' is unexpected",
            "'model.layers.0.input_layernorm.weight' is missing",
        ],
    ),
    "quantization block, BF16 tensors": (
        "bf16",
        lambda f: edit_config(f, lambda c: c.update(quantization={"format": "mobilemoe-int4-g32"})),
        ["config.json has a quantization block, but the tensors are not quantised"],
    ),
    "INT4 tensors, no block": (
        "int4",
        lambda f: edit_config(f, lambda c: c.pop("quantization")),
        ["the tensors are packed INT4, but config.json has no quantization block"],
    ),
    "another hidden size": (
        "int4",
        lambda f: edit_config(f, lambda c: c.update(hidden_size=96)),
        [f"config.json says hidden_size 96, but {NORM} has 64"],
    ),
    "another number of experts": (
        "bf16",
        lambda f: edit_config(f, lambda c: c.update(num_local_experts=8)),
        ["config.json says num_local_experts 8, but"],
    ),
    "a config that is wrong itself": (
        "bf16",
        lambda f: edit_config(f, lambda c: c.update(num_experts_per_tok=99)),
        ["num_experts_per_tok (99) is above"],
    ),
    "no config": ("bf16", lambda f: (f / "config.json").unlink(), ["no config.json"]),
    "no weights": ("bf16", lambda f: (f / "model.safetensors").unlink(), ["has no *.safetensors"]),
    "weights that are a folder": (
        "bf16",
        lambda f: [(f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()],
        ["model.safetensors is not a file"],
    ),
    "only a pickle": (
        "bf16",
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ["pytorch_model.bin", "never read"],
    ),
    "tensor twice": (
        "bf16",
        lambda f: shutil.copy(f / "model.safetensors", f / "copy.safetensors"),
        [f"'{NORM}' is in copy.safetensors and again in model.safetensors"],
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_all_that_is_wrong_is_listed(
    tmp_path: Path, case: str, request: pytest.FixtureRequest
) -> None:
    kind, spoil, expected = DAMAGE[case]
    folder = tmp_path / "spoilt"
    shutil.copytree(request.getfixturevalue(f"{kind}_folder"), folder)
    assert check(folder) == []
    spoil(folder)
    problems = "\n".join(check(folder))
    for words in expected:
        assert words in problems
    with pytest.raises(UserError) as error:
        load_save.load_model(folder)
    assert str(folder) in str(error.value)


def test_a_core_ml_package_is_told_as_one(tmp_path: Path) -> None:
    package = tmp_path / "tiny.mlpackage"
    package.mkdir()
    with pytest.raises(UserError, match="is a Core ML package, which `mobilemoe verify`"):
        open_checkpoint(package)


def test_an_index_that_disagrees_with_the_files(tmp_path: Path, tiny_args: ModelArgs) -> None:
    tensors = random_bits(tiny_args, Layout.FLOAT, False)
    folder = write(tmp_path / "x", tensors, tiny_args, shards=3)
    assert check(folder) == []
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = sorted(tensors)
    index["weight_map"]["ghost"] = index["weight_map"][names[0]]
    del index["weight_map"][names[3]]
    path.write_text(json.dumps(index))
    lost = folder / "model-00003-of-00003.safetensors"
    lost.unlink()
    shutil.copy(folder / "model-00002-of-00003.safetensors", folder / "model.safetensors")
    problems = check(folder)
    assert len(problems) == 4
    listed = "\n".join(problems)
    assert f"names {lost.name}, which is not in the folder" in listed
    assert "says 'ghost' is in model-00001-of-00003.safetensors, but it is not" in listed
    assert f"'{names[3]}' is in model-00001-of-00003.safetensors, but" in listed
    assert "does not name model.safetensors" in listed


def test_an_index_cannot_point_out_of_the_folder(tmp_path: Path, tiny_args: ModelArgs) -> None:
    folder = write(tmp_path / "x", random_bits(tiny_args, Layout.FLOAT, False), tiny_args, 2)
    path = folder / "model.safetensors.index.json"
    shutil.move(folder / "model-00002-of-00002.safetensors", tmp_path)
    path.write_text(path.read_text().replace("model-00002", "../model-00002"))
    assert any("not in the folder" in problem for problem in check(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 9000.0])
def test_bad_scales_are_refused_by_name(tmp_path: Path, int4_folder: Path, value: float) -> None:
    folder = tmp_path / "x"
    shutil.copytree(int4_folder, folder)
    names = ["model.embed_tokens.weight_scale", "model.layers.1.feed_forward.experts.down_scale"]

    def spoil(tensors: Tensors) -> None:
        for name in names:
            tensors[name].view(-1)[5] = value

    edit(folder, spoil)
    with pytest.raises(UserError) as error:
        load_save.load_model(folder)
    assert all(f"{name}: 1 of" in str(error.value) for name in names)


def test_no_damage_of_a_header_gets_past_or_crashes(tmp_path: Path, bf16_folder: Path) -> None:
    """Random bytes changed in the header: a list of problems, or a file that still reads whole."""
    rng = np.random.default_rng(0)
    data = (bf16_folder / "model.safetensors").read_bytes()
    length = 8 + struct.unpack("<Q", data[:8])[0]
    folder = tmp_path / "x"
    shutil.copytree(bf16_folder, folder)
    reported = 0
    for _ in range(150):
        spoilt = bytearray(data)
        for at in rng.integers(0, length, rng.integers(1, 4)):
            spoilt[at] = rng.integers(0, 256)
        (folder / "model.safetensors").write_bytes(spoilt)
        if check(folder):
            reported += 1
        else:
            # What remains: the metadata's text and the padding.
            read(folder)
    assert reported > 120


def test_layers_with_the_same_problem_are_one_line() -> None:
    problems = [f"'model.layers.{n}.x' is missing" for n in (0, 1, 7)]
    problems.insert(1, "something else")
    assert fold_layers(problems) == ["'model.layers.{0,1,7}.x' is missing", "something else"]
