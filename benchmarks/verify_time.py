"""How long each part of a proof takes, beside what `mobilemoe verify` predicts for the whole.

The constants of `verify/jobs.py` and `verify/coreml/evaluation_time.py` were fitted to this. Run:
python benchmarks/verify_time.py runs/quickstart/MobileMoE-tiny.mlpackage \
    runs/quickstart/training/qat/model
"""

from __future__ import annotations

import argparse
import sys
import time

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()

from mobilemoe_mlx.verify.verify import verify_package  # noqa: E402


def main() -> int:
    """Run the proof and print the seconds between what it says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", help="an export")
    parser.add_argument("checkpoint", help="the checkpoint it was made from")
    options = parser.parse_args()
    start = spoke = time.perf_counter()
    before = "opening"

    def say(text: str) -> None:
        nonlocal spoke, before
        now = time.perf_counter()
        print(f"{now - spoke:8.1f} s  {before}")
        spoke, before = now, text

    verdict = verify_package(options.package, options.checkpoint, say=say)
    say("")
    print(f"{spoke - start:8.1f} s  in all")
    return 0 if verdict.proved else 1


if __name__ == "__main__":
    sys.exit(main())
