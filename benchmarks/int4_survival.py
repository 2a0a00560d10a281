"""What INT4 keeps of adapters: update and held-out loss after `mobilemoe fuse --to int4`.

    python benchmarks/int4_survival.py MODEL --data PATH

MODEL is an INT4 checkpoint. Adapters of several learning rates are trained on it beside the packed
weights (qlora) and through the rounding (qat-lora), then fused into INT4 all the same. Prints, for
each: how much of the update survives, its relative error, the held-out loss of the base, with the
adapter and fused, and the share of the adapter's gain that the fused checkpoint has. The threshold
of `adapters/survival.py` rests on it. Ten minutes on two cores with the quickstart's model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mobilemoe_mlx import text_table

RUNS = [
    ("qlora", "1e-3"),
    ("qlora", "3e-3"),
    ("qlora", "1e-2"),
    ("qlora", "3e-2"),
    ("qat-lora", "1e-3"),
    ("qat-lora", "1e-2"),
]


def mobilemoe(*words: str | Path) -> None:
    command = [sys.executable, "-m", "mobilemoe_mlx.cli.main", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def row(model: Path, data: Path, method: str, rate: str, steps: int, work: Path) -> list[str]:
    run, fused = work / f"{method}-{rate}", work / f"{method}-{rate}-int4"
    words: list[str | Path] = ["finetune", model, "--data", data, "--run", run, "--method", method]
    words += ["--set", f"optimizer.peak_lr={rate}", "--set", f"steps={steps}"]
    words += ["--set", "data.context=256", "--set", "batch_size=8"]
    mobilemoe(*words)
    figures = work / "figures.json"

    def fuse(adapter: str) -> dict[str, object]:
        words = ["fuse", model, adapter, fused, "--to", "int4", "--force", "--overwrite"]
        mobilemoe(*words, "--data", data, "--json", figures)
        return json.loads(figures.read_text())

    base = float(str(fuse(f"{run / 'adapter'}:0")["heldout_before"]))
    found = fuse(str(run / "adapter"))
    before, after = float(str(found["heldout_before"])), float(str(found["heldout_after"]))
    kept = found["survival"]
    assert isinstance(kept, list)
    survives = f"{kept[-1]['survives']:.0%}" if kept else "-"
    error = f"{kept[-1]['error']:.2f}" if kept else "-"
    gain = f"{(base - after) / (base - before):.0%}"
    losses = [f"{loss:.3f}" for loss in (base, before, after)]
    return [f"{method} {rate}", survives, error, *losses, gain]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    header = ["method, rate", "survives", "error", "base", "adapter", "fused", "gain kept"]
    rows = [header]
    with tempfile.TemporaryDirectory() as work:
        for method, rate in RUNS:
            rows.append(row(args.model, args.data, method, rate, args.steps, Path(work)))
            print(text_table.columns(rows[-1:]), flush=True)
    print(text_table.columns(rows))


if __name__ == "__main__":
    main()
