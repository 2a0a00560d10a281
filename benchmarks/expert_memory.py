"""What it costs to read routed experts from the file when they are needed: speed against memory.

Run: python benchmarks/expert_memory.py MODEL [--precision int8] [--budgets 100,75,50,25,10]
The CPU engine with all weights in a memory map, then with memory for a share of the experts: each
in a process of its own, once with the files in the page cache and once with none of them there and
none kept (as where memory is short). Prints prefill (a first prompt, and another one after the
decoding), decoding after a prompt and twice as many tokens as are timed, hits, bytes read a token,
how many of them came from storage, and the peak of the process's memory. Texts are the standard
library's documentation or, where the folder has no tokenizer, random tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()

import numpy as np  # noqa: E402

from mobilemoe_mlx import text_table  # noqa: E402
from mobilemoe_mlx.bench.machine import cpu  # noqa: E402
from mobilemoe_mlx.bench.prompts import real_tokens, window  # noqa: E402
from mobilemoe_mlx.engines import open_engine  # noqa: E402
from mobilemoe_mlx.engines.cpu import CPUEngine  # noqa: E402
from mobilemoe_mlx.errors import UserError  # noqa: E402
from mobilemoe_mlx.memory import peak_memory_bytes, storage_bytes_read  # noqa: E402

HEAD = (
    "memory for experts",
    "page cache",
    "prefill, tokens/s",
    "another prompt",
    "decode, tokens/s",
    "hits",
    "read a token",
    "from storage",
    "peak memory",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="an INT4 checkpoint folder (random_checkpoint.py makes one)")
    parser.add_argument("--precision", default="int16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budgets", default="100,75,50,25,10", help="percent of the experts")
    parser.add_argument("--prompt", type=int, default=256, help="tokens (default %(default)s)")
    parser.add_argument("--decode", type=int, default=64, help="timed tokens (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="default %(default)s; medians")
    parser.add_argument("--page-cache", choices=("both", "with", "without"), default="both")
    parser.add_argument(
        "--apart",
        action="store_true",
        help="each token begins a text: none repeats the last's choice",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # JSON: this process measures one line
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options, **json.loads(options.one))), flush=True)
        return 0
    budgets = [None, *map(float, options.budgets.split(","))]
    modes = {"both": (True, False), "with": (True,), "without": (False,)}[options.page_cache]
    lines = [(budget, kept) for kept in modes for budget in budgets]
    found: dict[tuple[float | None, bool], list[dict[str, Any]]] = {line: [] for line in lines}
    for _ in range(options.rounds):
        for budget, kept in lines:
            one = json.dumps({"percent": budget, "kept": kept})
            command = [sys.executable, *sys.argv, "--one", one]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                return done.returncode
            found[budget, kept].append(json.loads(done.stdout))
            print(done.stdout, end="", file=sys.stderr)
    print(f"{cpu()}, {options.threads} threads, {options.precision}; {options.rounds} round(s).")
    print(text_table.columns([HEAD, *(row(*line, found[line]) for line in lines)]))
    return 0


def measure(options: argparse.Namespace, percent: float | None, kept: bool) -> dict[str, Any]:
    """One engine, in this process."""
    folder = Path(options.model)
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            if kept:
                while file.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    made: dict[str, Any] = {"precision": options.precision, "threads": options.threads}
    if percent is not None:
        made["expert_memory"] = int(percent / 100 * expert_bytes(folder))
    engine = open_engine(folder, "cpu", **made)
    assert isinstance(engine, CPUEngine)
    if not kept:
        drop_map(folder)
        if engine.expert_files is not None:
            engine.expert_files.keep_pages(False)
    prompt, decode = options.prompt, options.decode
    count = 2 * prompt + 3 * decode
    if (folder / "tokenizer.json").is_file():
        tokens = window(real_tokens(folder, engine.args), 0, count)
    else:
        tokens = np.random.default_rng(0).integers(0, engine.args.vocab_size, count).tolist()
    session = engine.session(prompt + 3 * decode)

    def seconds(parts: list[list[int]]) -> float:
        start = time.perf_counter()
        for part in parts:
            if options.apart:
                session.rewind(0)
            session.feed(part)
        return time.perf_counter() - start

    result: dict[str, Any] = {"memory": made.get("expert_memory")}
    result["prefill"] = prompt / seconds([tokens[:prompt]])
    answer = [[token] for token in tokens[2 * prompt :]]
    seconds(answer[: 2 * decode])
    before, read = engine.model.expert_counters, storage_bytes_read()
    result["decode"] = decode / seconds(answer[2 * decode :])
    after = engine.model.expert_counters
    used = after.hits - before.hits + after.misses - before.misses
    result["hits"] = (after.hits - before.hits) / used if used else None
    result["read"] = (after.bytes_read - before.bytes_read) / decode if used else None
    result["storage"] = (storage_bytes_read() - read) / decode
    session.rewind(0)
    result["again"] = prompt / seconds([tokens[prompt : 2 * prompt]])
    result["peak"] = peak_memory_bytes()
    return result


def expert_bytes(folder: Path) -> int:
    """Of all routed experts together."""
    engine = open_engine(folder, "cpu", threads=1)
    assert isinstance(engine, CPUEngine)
    tensors = engine.tensors.arrays
    return sum(array.nbytes for name, array in tensors.items() if ".experts." in name)


def drop_map(folder: Path) -> None:
    """Forget what opening the checkpoint read of its files."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def row(percent: float | None, kept: bool, rounds: list[dict[str, Any]]) -> list[str]:
    """A line of the table: medians."""

    def middle(name: str) -> float | None:
        values = [each[name] for each in rounds if each[name] is not None]
        return statistics.median(values) if values else None

    def size(name: str) -> str:
        return "-" if (value := middle(name)) is None else text_table.size(int(value))

    memory, hits = rounds[0]["memory"], middle("hits")
    return [
        "all, mapped" if memory is None else f"{text_table.size(memory)} ({percent:g} %)",
        "with" if kept else "without",
        *(f"{middle(name):,.1f}" for name in ("prefill", "again", "decode")),
        "-" if hits is None else f"{100 * hits:.0f} %",
        *map(size, ("read", "storage", "peak")),
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
