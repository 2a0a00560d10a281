"""Write a checkpoint of exactly the published layout and size, with random weights.

Run: python benchmarks/random_checkpoint.py --preset S --layout int4 --output DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mobilemoe_mlx.checkpoint.folder import MAX_SHARD_BYTES
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.config import PRESETS, preset
from mobilemoe_mlx.errors import UserError


def main() -> int:
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
