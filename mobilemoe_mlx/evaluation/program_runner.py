"""Programs that a model wrote, run in processes of their own with limits.

The limits bound what a mistake can cost: seconds, memory, the size of files. They are no sandbox: a
program may read what the user may read, and reach the network. Each program runs in a new
interpreter without the caller's environment, in an empty folder that is removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import IO, Any

# Seconds between two looks whether a program has ended that left its pipe to another process.
_LOOK = 0.05


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 3  # those of code_eval, OpenAI's and the harness's way to score HumanEval
    wall_seconds: float = 10.0  # a busy machine takes longer
    memory: int = 2 << 30  # bytes of address space; macOS does not hold to it
    file_size: int = 1 << 20  # bytes of each file it writes


# The child sets its own limits: code between fork and exec is unsafe in a process with threads. It
# tells that the program came to its end by a word that the program does not know; an early
# `sys.exit(0)` does not, nor does a process that the program forked.
_CHILD = """
import os, resource, sys
cpu, memory, size = map(int, sys.argv[1:])
for what, most in (("CPU", cpu), ("AS", memory), ("FSIZE", size), ("CORE", 0)):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
    except (ValueError, OSError):
        pass
word, _, program = sys.stdin.buffer.read().partition(b"\\n")
answer = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
del sys.argv[1:]
own, process, write, leave = os.getpid(), os.getpid, os.write, os._exit
exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
if process() == own:
    write(answer, word)
leave(0)
"""


def passes(program: str, limits: Limits = Limits()) -> bool:
    """Whether the Python `program` runs to its end without an error, within the `limits`."""
    word = secrets.token_hex(16).encode()
    numbers = [str(n) for n in (limits.cpu_seconds, limits.memory, limits.file_size)]
    with (
        tempfile.TemporaryDirectory(prefix="mobilemoe-program-") as folder,
        tempfile.TemporaryFile() as given,
    ):
        given.write(word + b"\n" + program.encode(errors="surrogatepass"))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD, *numbers],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            # numpy's BLAS reserves memory for each thread.
            env={"HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            said = _answer(process, process.stdout, limits.wall_seconds, len(word))
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started goes with it
            process.stdout.close()
            process.wait()
    return said == word


def _answer(
    process: subprocess.Popen[bytes], pipe: IO[bytes], seconds: float, length: int
) -> bytes:
    """What the process says before it ends; nothing where it takes longer than `seconds`.

    The end of the pipe is not waited for: what the program started may hold it.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        has_ended = process.poll() is not None  # before looking: it may say its word and end
        if select.select([pipe], [], [], 0 if has_ended else min(left, _LOOK))[0]:
            return os.read(pipe.fileno(), length)
        if has_ended:
            break
    return b""


class CodeEval:
    """In the place of `evaluate.load("code_eval")`, by which the harness's tasks run programs."""

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """pass@k of programs: `predictions`, several for each of the tests `references`.

        Returns {"pass@1": ...} and the results of each, as code_eval does. pass@k is the unbiased
        estimate of arXiv 2107.03374: 1 - C(n - c, k) / C(n, k) for c of n programs that pass.
        """
        results = {
            number: [
                (index, {"task_id": number, "passed": passes(f"{candidate}\n{test}")})
                for index, candidate in enumerate(candidates)
            ]
            for number, (test, candidates) in enumerate(zip(references, predictions, strict=True))
        }
        rates = {}
        for each in k:
            values = []
            for found in results.values():
                n, c = len(found), sum(result["passed"] for _, result in found)
                if n >= each:
                    values.append(1 - comb(n - c, each) / comb(n, each))
            if len(values) == len(results):
                rates[f"pass@{each}"] = sum(values) / len(values)
        return rates, results
