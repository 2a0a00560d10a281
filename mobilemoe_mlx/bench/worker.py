"""The process that one engine is measured in: `python -m mobilemoe_mlx.bench.worker JSON`.

It opens the engine and prints a line of JSON; then, for each line it reads, it runs one
conversation and prints what that took. A rival's process speaks the same, so
`measure.py` does not know what runs in it.

    argument   {"folder": ..., "engine": ..., "options": {...}}
    first line {"description": ...}, or {"error": sentence}
    request    {"tokens": [...], "prompt": n}: the first n at once, the others one by one
    answer     {"first_token_seconds", "decode_seconds", "peak_bytes", "touched_bytes", "experts"}

"experts" says what an engine that reads experts when they are needed read while it decoded
(`results.Measured.experts`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mobilemoe_mlx import mlx_on_linux
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.onnx_folder.folder import WEIGHTS

mlx_on_linux.prepare()


class Session(Protocol):
    """What a conversation is fed to; its result is not looked at."""

    def feed(self, token_ids: list[int], /) -> object:
        """Append tokens and compute the logits after them."""


def main() -> int:
    """Open the engine and serve requests until standard input ends."""
    from mobilemoe_mlx.engines import open_engine

    asked = json.loads(sys.argv[1])
    try:
        engine = open_engine(asked["folder"], asked["engine"], **asked["options"])
    except UserError as error:
        say({"error": str(error)})
        return 2
    say({"description": engine.describe()})
    serve(engine.session, engine.expert_reads)
    return 0


def serve(
    session_of: Callable[[int], Session],
    expert_reads: Callable[[], dict[str, int] | None] = lambda: None,
) -> None:
    """Answer requests until standard input ends.

    `session_of`: room for so many tokens. `expert_reads`: see `Engine`.
    """
    from mobilemoe_mlx.memory import peak_memory_bytes, storage_bytes_read

    for line in sys.stdin:
        request = json.loads(line)
        tokens, prompt = request["tokens"], request["prompt"]
        session = session_of(len(tokens))
        start = time.perf_counter()
        session.feed(tokens[:prompt])
        reads, stored = expert_reads(), storage_bytes_read()
        first = time.perf_counter()
        for token in tokens[prompt:]:
            session.feed([token])
        last = time.perf_counter()
        experts: dict[str, int | None] | None = None
        if (reads_after := expert_reads()) is not None and reads is not None:
            experts = {name: reads_after[name] - reads[name] for name in reads}
            stored_after = storage_bytes_read()
            experts["storage_bytes"] = (
                None if stored is None or stored_after is None else stored_after - stored
            )
        say(
            {
                "experts": experts,
                "first_token_seconds": first - start,
                "decode_seconds": last - first,
                "peak_bytes": peak_memory_bytes(),
                "touched_bytes": _touched_bytes(),
            }
        )


def say(answer: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(answer), flush=True)


def _touched_bytes() -> int | None:
    """Bytes of weight files that this process has touched in its memory map; None: not known."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return None
    total, counts = 0, False
    for line in smaps.read_text(encoding="utf-8", errors="replace").splitlines():
        head = line.split(maxsplit=1)[0]
        if not head.endswith(":"):  # the line that begins a mapping
            counts = line.endswith((".safetensors", WEIGHTS))
        elif counts and head == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


if __name__ == "__main__":
    sys.exit(main())
