"""How long the first token takes: `mobilemoe generate`, from the start of its process to its end.

One token after a prompt of some 32, in fresh processes; the first run warms the page cache and is
not counted. Prints the median, the range and the CPU time. Run on a machine that does nothing else:
python benchmarks/first_token.py MODEL [--engine mlx]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

PROMPT = (
    "Open the file whose name is given, read its lines, and return those that begin with a #. "
    "Where the file cannot be read, return an empty list."
)


def main() -> int:
    """Time the command and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a checkpoint folder with a tokenizer")
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    command = [sys.executable, "-m", "mobilemoe_mlx.cli.main", "generate", options.model]
    command += ["--engine", options.engine, "--prompt", PROMPT, "--max-tokens", "1"]
    seconds, cpu_seconds = [], []
    for run in range(options.runs + 1):
        before, start = os.times(), time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        after, end = os.times(), time.perf_counter()
        if run:
            seconds.append(end - start)
            cpu_seconds.append(
                after.children_user
                - before.children_user
                + after.children_system
                - before.children_system
            )
    print(done.stderr.strip())
    print(
        f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
        f"of CPU time {statistics.median(cpu_seconds):.2f} s; medians of {options.runs}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
