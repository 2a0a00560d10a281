"""Time the CPU kernel on full-size random models, beside llama.cpp or a dense model in one run.

Engines take turns, one round each, so that what else the machine does meets them alike; figures are
medians, ratios are medians of the rounds' ratios to llama.cpp or, with `--shapes S,pro`, to
MobileLLM-Pro's shape, the paper's dense baseline, in the same precision.
Run: python benchmarks/cpu_kernel.py --rounds 5 [--llama-python VENV/bin/python]
     python benchmarks/cpu_kernel.py --rounds 3 --shapes S,pro --prompts 256 --contexts 256
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilemoe_mlx.bench.contenders import Contender, llama_cpp_command, llama_cpp_shape
from mobilemoe_mlx.bench.machine import cpu
from mobilemoe_mlx.bench.measure import Process
from mobilemoe_mlx.config import PRESETS
from mobilemoe_mlx.errors import UserError

ROOT = Path(__file__).parents[1]
KERNEL = ROOT / "coreml" / "kernel"
DECODED = 32  # tokens that are timed in decoding, as in bench.cpp
TOKEN_BYTES = 156.5e6  # what decoding one token of S reads of its weights

Round = dict[str, Any]


class LlamaCpp:
    """llama.cpp on a random model of S's sizes, timed as bench.cpp times ours."""

    name = "llama.cpp"

    def __init__(
        self, python: str, threads: int, prompts: Sequence[int], contexts: Sequence[int]
    ) -> None:
        self.rounds: list[Round] = []
        self._prompts, self._contexts = prompts, contexts
        room = max(*prompts, *(context + 1 + DECODED for context in contexts))
        shape = llama_cpp_shape(PRESETS["S"])
        self._process = Process(
            Contender(self.name, llama_cpp_command(shape, threads, room, python))
        )
        print(self._process.description)

    def round(self) -> None:
        """Time one round."""
        found: Round = {}
        for prompt in self._prompts:
            found[f"prefill_{prompt}"] = prompt / self._run(prompt, 0)["first_token_seconds"]
        for context in self._contexts:
            answer = self._run(context + 1, DECODED)
            found[f"decode_{context}"] = DECODED / answer["decode_seconds"]
            found["peak_rss_mb"] = answer["peak_bytes"] // 2**20
        self.rounds.append(found)

    def close(self) -> None:
        """End the process."""
        self._process.__exit__()

    def _run(self, prompt: int, decoded: int) -> dict[str, Any]:
        tokens = [i * 7919 % PRESETS["S"].vocab_size for i in range(prompt + decoded)]
        return self._process.run(tokens, prompt)


class Engine:
    """A process that times one round for each line it gets."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.rounds: list[Round] = []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def round(self) -> None:
        """Time one round; raises RuntimeError when the process ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.name} ended before its round: see its message above.")
        self.rounds.append(json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def build(folder: Path) -> Path:
    """The program bench, from the kernel's sources, with the system's compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        raise SystemExit("There is no C++ compiler: install g++ or clang.")
    sources = [*sorted((KERNEL / "src").glob("*.cpp")), KERNEL / "bench" / "bench.cpp"]
    target = folder / "bench"
    include = ["-I", str(KERNEL / "include")]
    command = [compiler, "-std=c++17", "-O3", *include, *map(str, sources), "-o", str(target)]
    subprocess.run([*command, "-pthread"], check=True)
    return target


def report(engines: Sequence[Engine | LlamaCpp], figures: list[str]) -> None:
    """Print a table of medians, and of ratios to the rival of each where it ran."""
    by_name = {engine.name: engine for engine in engines}
    print(f"{cpu()}\n\n| | {' | '.join(figures)} | peak RSS, MB |")
    print(f"|---|{'---|' * (len(figures) + 1)}")
    for engine in engines:
        rival = by_name.get("llama.cpp", by_name.get(f"pro, {engine.name.partition(', ')[2]}"))
        cells = []
        for figure in figures:
            values = [r[figure] for r in engine.rounds]
            cell = f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"
            if rival is not None and engine is not rival:
                ratios = [
                    ours[figure] / theirs[figure]
                    for ours, theirs in zip(engine.rounds, rival.rounds, strict=True)
                ]
                cell += f", x{statistics.median(ratios):.2f}"
            cells.append(cell)
        memory = max(r["peak_rss_mb"] for r in engine.rounds)
        print(f"| {engine.name} | {' | '.join(cells)} | {memory} |")
    for engine in engines:
        is_s = engine.name.startswith("S, ")  # whose bytes a token are known
        if is_s and "decode_0" in figures:
            # Measured just before and after decoding: what a virtual machine gets changes.
            rates = [r["bandwidth_0"] for r in engine.rounds]
            shares = [
                100 * r["decode_0"] * TOKEN_BYTES / 1e9 / r["bandwidth_0"] for r in engine.rounds
            ]
            print(
                f"\n{engine.name}: {statistics.median(rates):.0f} ({min(rates):.0f}-"
                f"{max(rates):.0f}) GB/s of memory measured; decode uses "
                f"{statistics.median(shares):.0f} % ({min(shares):.0f}-{max(shares):.0f}) of it.",
            )


def main() -> int:
    """Parse the command line, run the rounds, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", default="S", help="S, M, L or pro (default %(default)s)")
    parser.add_argument("--precisions", default="int8,int16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", default="0,1024", help="decode after so many tokens")
    parser.add_argument("--prompts", default="512,1024")
    parser.add_argument(
        "--llama-python",
        help="a Python that has llama-cpp-python and gguf; without it, no comparison",
    )
    parser.add_argument("--cpu-path", help="the kernel's code path (default: the fastest)")
    parser.add_argument("--json", type=Path, help="write every round here")
    options = parser.parse_args()
    common = ["--threads", str(options.threads)]
    common += ["--contexts", options.contexts, "--prompts", options.prompts]
    if options.cpu_path:
        common += ["--cpu-path", options.cpu_path]
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        engines: list[Engine | LlamaCpp] = [
            Engine(
                f"{shape}, {name}",
                [str(program), "--rounds", "0", "--shape", shape, "--precision", name, *common],
            )
            for shape in options.shapes.split(",")
            for name in options.precisions.split(",")
        ]
        if options.llama_python:
            prompts, contexts = (
                [int(n) for n in text.split(",")] for text in (options.prompts, options.contexts)
            )
            engines.append(LlamaCpp(options.llama_python, options.threads, prompts, contexts))
        for _ in range(options.rounds + 1):
            for engine in engines:
                engine.round()
        for engine in engines:
            engine.close()
            del engine.rounds[0]  # pages are touched for the first time
    figures = [f"prefill_{n}" for n in options.prompts.split(",")]
    figures += [f"decode_{n}" for n in options.contexts.split(",")]
    report(engines, figures)
    if options.json:
        rounds = {engine.name: engine.rounds for engine in engines}
        options.json.write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
