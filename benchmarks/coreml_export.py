"""Time, peak memory and size of a full-size Core ML export, each in a fresh process.

Run: python benchmarks/coreml_export.py [--preset S] [--moe core-ops] [--checkpoint FOLDER]
     [--work FOLDER]

Without --checkpoint one of the published layout is made from random weights first. Exits with
status 1 beyond the limits: S within 2 minutes and 4 GB, any size within 8 GB, the package and its
side file at most 1.02 x the checkpoint's weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mobilemoe_mlx import mlx_on_linux

SIZE_LIMIT = 1.02
SECONDS_LIMIT = {"S": 120}
MEMORY_LIMIT = {"S": 4e9}
LARGEST_MEMORY = 8e9


def export(checkpoint: str, output: str, moe: str) -> dict[str, float]:
    """Export in this process; returns seconds, peak bytes and sizes."""
    start = time.perf_counter()
    from mobilemoe_mlx.export.coreml.options import ExportOptions
    from mobilemoe_mlx.export.coreml.package import export_coreml

    done = export_coreml(checkpoint, output, ExportOptions(moe=moe))  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "peak": peak if sys.platform == "darwin" else peak * 1024,
        "bytes": done.package_bytes,
        "checkpoint": done.checkpoint_bytes,
    }


def main() -> int:
    """Export in a fresh process and report; 0 within the limits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="S", help="size of the random checkpoint (S)")
    parser.add_argument("--moe", default="core-ops", choices=("core-ops", "custom-layer"))
    parser.add_argument("--checkpoint", type=Path, help="an INT4 checkpoint folder to export")
    parser.add_argument("--work", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        mlx_on_linux.prepare()
        print(json.dumps(export(*options.step)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        checkpoint = options.checkpoint
        if checkpoint is None:
            checkpoint = Path(folder) / "checkpoint"
            maker = [str(Path(__file__).with_name("random_checkpoint.py")), "--layout", "int4"]
            command = [*maker, "--preset", options.preset, "--output", str(checkpoint)]
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        step = [str(checkpoint), str(Path(folder) / "M.mlpackage"), options.moe]
        done = subprocess.run(
            [sys.executable, __file__, "--step", *step],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    measured = json.loads(done.stdout.splitlines()[-1])
    ratio = measured["bytes"] / measured["checkpoint"]
    print(
        f"{options.preset} {options.moe}: {measured['seconds']:.1f} s, peak "
        f"{measured['peak'] / 1e9:.2f} GB, {measured['bytes'] / 1e6:,.1f} MB = {ratio:.4f} x the "
        "checkpoint's weights"
    )
    within = (
        ratio <= SIZE_LIMIT
        and measured["seconds"] <= SECONDS_LIMIT.get(options.preset, float("inf"))
        and measured["peak"] <= MEMORY_LIMIT.get(options.preset, LARGEST_MEMORY)
    )
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
