"""Write a checkpoint of exactly the published layout and size, with random weights.

Meta's checkpoints cannot be shipped; memory and speed are measured on these.
`benchmarks/random_checkpoint.py` is the command.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.checkpoint.folder import MAX_SHARD_BYTES, write_model_folder
from mobilemoe_mlx.checkpoint.layouts import Layout, expected_tensors
from mobilemoe_mlx.checkpoint.tensor_file import FORMAT_NAMES, Tensor
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.int4_rounding import SAVED_TYPE, as_quantized

_STD = 0.02  # of the weights: Llama's initializer_range
# Codes are uniform, but most of the -8 become 0: else their mean would be -0.5, the activations of
# a deep model would come to point in one direction, and all tokens would choose the same experts.
_UNIFORM_BYTES = 1024  # at a tensor's beginning, which keep them: -8 occurs too
_WITHOUT_LOWEST = np.array(
    [(b & 0x0F) * (b & 0x0F != 8) | (b & 0xF0) * (b >> 4 != 8) for b in range(256)], np.uint8
)
_CODE_STD = math.sqrt(sum(c * c for c in range(-7, 8)) / 16)


def write_random_checkpoint(
    folder: str | Path,
    args: ModelArgs,
    seed: int = 0,
    *,
    quantized: bool,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a checkpoint of `args` with random weights, holding one tensor at a time.

    `quantized`: packed INT4, else BF16. The same seed gives the same bytes, whatever the shards.
    There is no tokenizer in it. Raises UserError when the folder is not empty.
    """
    args = dataclasses.replace(args, torch_dtype=SAVED_TYPE)
    if quantized:
        args = as_quantized(args)
    tensors = {}
    for name, expected in expected_tensors(
        args, Layout.INT4 if quantized else Layout.FLOAT
    ).items():
        tensors[name] = _random_tensor(name, expected.dtypes[0], expected.shape, seed)
    write_model_folder(folder, args.to_dict(), tensors, max_shard_bytes=max_shard_bytes)


def _random_tensor(name: str, dtype: str, shape: tuple[int, ...], seed: int) -> Tensor:
    def read() -> mx.array:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if dtype == "U8":
            size = math.prod(shape)
            codes = np.frombuffer(rng.bytes(size), np.uint8).copy()
            codes[_UNIFORM_BYTES:] = _WITHOUT_LOWEST[codes[_UNIFORM_BYTES:]]
            return mx.array(codes.reshape(shape))
        if dtype == "F16":
            scale = rng.uniform(0.5, 1.5, shape).astype(np.float32) * (_STD / _CODE_STD)
            return mx.array(scale.astype(np.float16))
        values = rng.standard_normal(shape, np.float32) * np.float32(_STD)
        if name.endswith("norm.weight"):
            values += 1
        return mx.array(values).astype(_TYPES[dtype])

    return Tensor(dtype, shape, read)


_TYPES = {name: dtype for dtype, name in FORMAT_NAMES.items()}
