"""Time the forms of an ONNX export of S beside the CPU engine and llama.cpp, in one run.

Engines take turns, one round each, in processes of their own; figures are medians, ratios medians
of the rounds' ratios to the CPU engine. All compute a random model of S's size; products are int16
with our kernel, float32 in ONNX Runtime's own operators, llama.cpp has Q4_0. Exports are written
below --work and found there again.
Run: python benchmarks/onnx_speed.py [--llama-python VENV/bin/python] [--forms fused,portable]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mobilemoe_mlx.bench.contenders import Contender, llama_cpp_command, llama_cpp_shape
from mobilemoe_mlx.bench.machine import cpu
from mobilemoe_mlx.bench.measure import Process
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.config import PRESETS
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.onnx.folder import export_onnx
from mobilemoe_mlx.export.onnx.options import ExportOptions

CONTEXT = 2048
DECODED = 32
# Each form with the choices that are timed; `fused` with the CPU engine's own default first.
FORMS = {
    "fused": {"form": "fused", "activations": "float16"},
    "fused-float32-cache": {"form": "fused"},
    "portable": {"form": "portable"},
    "qmoe": {"form": "qmoe", "requantize": True},
}


def prepared(work: Path, forms: list[str]) -> dict[str, Path]:
    """The checkpoint and an export for each form, made where they are not there yet."""
    checkpoint = work / "S"
    if not checkpoint.is_dir():
        write_random_checkpoint(checkpoint, PRESETS["S"], 0, quantized=True)
    found = {"cpu": checkpoint}
    for name in forms:
        found[name] = work / name
        if not found[name].is_dir():
            print(f"exporting {name}", file=sys.stderr)
            export_onnx(checkpoint, found[name], ExportOptions(context=CONTEXT, **FORMS[name]))
    return found


def contender(name: str, folder: Path, threads: int) -> Contender:
    """An engine of ours on a folder."""
    engine = "cpu" if name == "cpu" else "onnx"
    asked = {"folder": str(folder), "engine": engine, "options": {"threads": threads}}
    command = (sys.executable, "-m", "mobilemoe_mlx.bench.worker", json.dumps(asked))
    return Contender(name, command)


def one_round(process: Process, tokens: list[int]) -> dict[str, float]:
    """Tokens per second of each phase, and the process's peak memory so far."""
    found: dict[str, float] = {}
    answer = process.run(tokens[: 512 + DECODED], 512)
    found["prefill 512"] = 512 / answer["first_token_seconds"]
    answer = process.run(tokens[: 8 + DECODED], 8)
    found["decode"] = DECODED / answer["decode_seconds"]
    answer = process.run(tokens[: 1024 + DECODED], 1024)
    found["decode after 1,024"] = DECODED / answer["decode_seconds"]
    found["peak MB"] = answer["peak_bytes"] / 1e6
    return found


def report(rounds: dict[str, list[dict[str, float]]]) -> None:
    """A table of medians, with ratios to the CPU engine."""
    figures = list(rounds["cpu"][0])
    print(f"{cpu()}\n\n| | {' | '.join(figures)} |\n|---|{'---|' * len(figures)}", flush=True)
    for name, of_engine in rounds.items():
        cells = []
        for figure in figures:
            cell = f"{statistics.median(r[figure] for r in of_engine):,.0f}"
            if name != "cpu" and figure != "peak MB":
                pairs = zip(of_engine, rounds["cpu"], strict=True)
                cell += f" (x{statistics.median(a[figure] / b[figure] for a, b in pairs):.2f})"
            cells.append(cell)
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", default=",".join(FORMS), help=f"of {', '.join(FORMS)}")
    parser.add_argument("--work", type=Path, default=Path("runs/onnx-speed"))
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python and gguf")
    parser.add_argument("--json", type=Path, help="write every round's figures here")
    options = parser.parse_args()
    forms = [name for name in options.forms.split(",") if name]
    if unknown := set(forms) - set(FORMS):
        parser.error(f"no such forms: {', '.join(sorted(unknown))}")
    tokens = [i * 7919 % PRESETS["S"].vocab_size for i in range(CONTEXT)]
    rounds: dict[str, list[dict[str, Any]]] = {}
    try:
        folders = prepared(options.work, forms)
        taking_part = [contender(name, f, options.threads) for name, f in folders.items()]
        if options.llama_python:
            shape = llama_cpp_shape(PRESETS["S"])
            command = llama_cpp_command(shape, options.threads, CONTEXT, options.llama_python)
            taking_part.append(Contender("llama.cpp", command))
        with ExitStack() as stack:
            processes = {c.name: stack.enter_context(Process(c)) for c in taking_part}
            for process in processes.values():
                process.run(tokens[:40], 8)  # memory maps and pools are warm
            for number in range(options.rounds):
                for name, process in processes.items():
                    rounds.setdefault(name, []).append(one_round(process, tokens))
                print(f"\nround {number + 1} of {options.rounds}\n")  # so far, were it stopped
                report(rounds)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
