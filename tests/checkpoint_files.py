"""Checkpoint folders for tests, written and read by the format's own library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from mobilemoe_mlx.checkpoint.layouts import Layout, expected_tensors
from mobilemoe_mlx.config import ModelArgs

TORCH_TYPES = {
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F16": torch.float16,
    "U8": torch.uint8,
}
RAW_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}

Tensors = dict[str, torch.Tensor]


def read(folder: Path) -> Tensors:
    """All tensors of a folder, read by the format's own library."""
    out: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        out |= safetensors.torch.load_file(path)
    return out


def write(folder: Path, tensors: Tensors, args: ModelArgs, shards: int = 1) -> Path:
    """A checkpoint written by the format's own library."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(args.to_dict()))
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        file = file if shards > 1 else "model.safetensors"
        part = {n: tensors[n].contiguous() for n in names[shard::shards]}
        safetensors.torch.save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_bits(args: ModelArgs, layout: Layout, widest: bool) -> Tensors:
    """Tensors of random bits: every NaN payload, infinity, subnormal and -0.0 may occur.

    Scales are random finite numbers below 8188, subnormals and -0.0 among them. `widest`: the last
    of the dtypes that a tensor may have, else the first.
    """
    rng = np.random.default_rng(5)
    out: Tensors = {}
    for name, expected in expected_tensors(args, layout).items():
        dtype = TORCH_TYPES[expected.dtypes[-1 if widest else 0]]
        shape = (*expected.shape, dtype.itemsize)
        raw = rng.integers(0, 256, shape, dtype=np.uint8)
        if expected.dtypes == ("F16",):
            raw[..., 1] = rng.choice([0x00, 0x80, 0x03, 0x3C, 0xBC, 0x6B], expected.shape)
        out[name] = torch.from_numpy(raw).view(dtype).squeeze(-1)
    return out


def assert_same_bits(ours: Tensors, theirs: Tensors) -> None:
    """The same names, dtypes and bits; NaN payloads and the sign of zero count."""
    assert set(ours) == set(theirs)
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        raw = RAW_TYPES[theirs[name].dtype.itemsize]
        assert torch.equal(ours[name].view(raw), theirs[name].view(raw)), name
