"""Programs that a model wrote, run in processes of their own with limits.

The limits bound what a mistake can cost: seconds, memory, the size of files. They are no sandbox: a
program may read what the user may read, and reach the network. Each program runs in a new
interpreter without the caller's environment, in an empty folder that is removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 3  # those of code_eval, OpenAI's and the harness's way to score HumanEval
    wall_seconds: float = 10.0  # a busy machine takes longer
    memory: int = 2 << 30  # bytes of address space; macOS does not hold to it
    file_size: int = 1 << 20  # bytes of each file it writes


# The child sets its own limits: code between fork and exec is unsafe in a process with threads. It
# tells that the program came to its end by a word that the program does not know; an early
# `sys.exit(0)` does not.
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
exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
os.write(answer, word)
os._exit(0)
"""


def passes(program: str, limits: Limits = Limits()) -> bool:
    """Whether the Python `program` runs to its end without an error, within the `limits`."""
    word = secrets.token_hex(16).encode()
    numbers = [str(n) for n in (limits.cpu_seconds, limits.memory, limits.file_size)]
    with tempfile.TemporaryDirectory(prefix="mobilemoe-program-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CHILD, *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            # numpy's BLAS reserves memory for each thread.
            env={"HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(
                word + b"\n" + program.encode(errors="surrogatepass"), timeout=limits.wall_seconds
            )
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started goes with it
            # The pipe is not read to its end: what made itself a session of its own may hold it.
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # of what the program did not read
                    pipe.close()  # type: ignore[union-attr]
            process.wait()
    return said == word


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
