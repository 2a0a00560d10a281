"""What an ONNX export weighs, how long it takes, and how much memory.

Run: python benchmarks/onnx_export.py [--preset S] [--forms fused portable qmoe]

Writes a random INT4 checkpoint of the preset into a temporary folder, exports it in each form in a
process of its own, and prints the size of graph and weights, their ratio to the checkpoint's INT4
tensors, the seconds and the process's peak memory. qmoe includes the comparison that tells what its
second rounding adds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.config import PRESETS
from mobilemoe_mlx.export.onnx.options import FORMS


def export(checkpoint: Path, output: Path, form: str) -> str:
    """Export in a new process; -> a line of the table."""
    command = [sys.executable, "-m", "mobilemoe_mlx.cli.main", "export", "onnx"]
    command += [str(checkpoint), str(output), "--form", form, "--json", "-"]
    command += ["--requantize"] if form == "qmoe" else []
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    record = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"the export of {form} failed")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    ratio = record["model_bytes"] / record["checkpoint_bytes"]
    return (
        f"{form:<9} {record['model_bytes'] / 1e6:>9,.1f} MB  {ratio:>6.3f} x  {seconds:>6.1f} s  "
        f"{peak / 1e9:>5.2f} GB"
    )


def main() -> None:
    """Export each form and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="S")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_random_checkpoint(checkpoint, PRESETS[args.preset], seed=1, quantized=True)
        print(f"{'form':<9} {'size':>12}  {'ratio':>8}  {'time':>8}  {'memory':>8}")
        for form in args.forms:
            print(export(checkpoint, Path(folder) / form, form), flush=True)


if __name__ == "__main__":
    main()
