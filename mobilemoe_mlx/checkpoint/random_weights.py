"""Write a checkpoint of exactly the published layout and size, with random weights.

Meta's checkpoints cannot be shipped; memory and speed are measured on these.
Run: python -m mobilemoe_mlx.checkpoint.random_weights --preset S --layout int4 --output DIR
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from pathlib import Path

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.checkpoint.folder import MAX_SHARD_BYTES, write_model_folder
from mobilemoe_mlx.checkpoint.layouts import Layout, expected_tensors
from mobilemoe_mlx.checkpoint.tensor_file import FORMAT_NAMES, Tensor
from mobilemoe_mlx.config import PRESETS, ModelArgs, preset
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.quantized import as_quantized

_STD = 0.02  # of the weights: Llama's initializer_range
_CODE_STD = math.sqrt(sum(c * c for c in range(-8, 8)) / 16)  # of uniform INT4 codes


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
            return mx.array(np.frombuffer(rng.bytes(size), np.uint8).reshape(shape))
        if dtype == "F16":
            scale = rng.uniform(0.5, 1.5, shape).astype(np.float32) * (_STD / _CODE_STD)
            return mx.array(scale.astype(np.float16))
        values = rng.standard_normal(shape, np.float32) * np.float32(_STD)
        if name.endswith("norm.weight"):
            values += 1
        return mx.array(values).astype(_TYPES[dtype])

    return Tensor(dtype, shape, read)


_TYPES = {name: dtype for dtype, name in FORMAT_NAMES.items()}


def main() -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="S", help=f"one of {', '.join(PRESETS)} (default: S)")
    parser.add_argument("--layout", choices=("int4", "bf16"), default="int4")
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=MAX_SHARD_BYTES)
    options = parser.parse_args()
    try:
        write_random_checkpoint(
            options.output,
            preset(options.preset),
            options.seed,
            quantized=options.layout == "int4",
            max_shard_bytes=options.shard_bytes,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for path in sorted(Path(options.output).glob("*.safetensors")):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
