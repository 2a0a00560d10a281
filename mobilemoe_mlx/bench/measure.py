"""Lets engines take turns, each in its own process, and collects what they say."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mobilemoe_mlx.accounting.cost import bytes_read_per_token
from mobilemoe_mlx.bench.contenders import Contender, engines, rival
from mobilemoe_mlx.bench.machine import Bandwidth, cpu
from mobilemoe_mlx.bench.prompts import real_tokens, window
from mobilemoe_mlx.bench.results import EngineResults, Measured, Results
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.cpu_kernel import library
from mobilemoe_mlx.engines import model_args
from mobilemoe_mlx.errors import UserError

SHORT_PROMPT = 32  # tokens of the first prompt, which is timed from the start of the process
DECODED = 32  # tokens after each prompt


def bench(
    folder: Path,
    names: Sequence[str] = (),
    *,
    rivals: Sequence[str] = (),
    llama_python: str | None = None,
    prompts: Sequence[int] = (256, 1024, 4096, 8192),
    rounds: int = 5,
    threads: int = 2,
    expert_memory: int | None = None,
    most_seconds: float = 60.0,
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """Measure engines on the checkpoint in `folder`; `names`: see `contenders.engines`.

    `rivals` of RIVALS take turns with them; `llama_python`: the Python that has llama.cpp.

    Each round gives every engine a prompt of each length, cut from other places of the standard
    library's documentation than the round before, and DECODED tokens after it. A prompt that would
    take an engine longer than `most_seconds` is left out. Lengths beyond the model's context are
    lowered to it. `expert_memory`: of the CPU engine. Raises UserError for a checkpoint or choice
    that cannot be, and for an engine that fails.
    """
    args = model_args(folder)
    lengths = _lengths(prompts, args)
    if (most := max(prompts)) > lengths[-1]:
        say(
            f"the model's context is {args.max_position_embeddings:,} tokens, answer included: "
            f"{most:,} are lowered to {lengths[-1]:,}"
        )
    if rounds < 1:
        raise UserError(f"{rounds} rounds: at least 1 is needed.")
    library.check_threads(threads, "bench")
    room = max(lengths[-1], SHORT_PROMPT) + DECODED
    taking_part = engines(folder, args, names, threads, expert_memory)
    taking_part += [rival(name, folder, args, threads, room, llama_python) for name in rivals]
    tokens = real_tokens(folder, args)
    results = Results(str(folder), cpu(), threads, rounds, bytes_read_per_token(args), [], [])
    with ExitStack() as stack:
        processes = []
        for contender in taking_part:
            say(f"starting {contender.name}")
            process = stack.enter_context(Process(contender))
            first = process.run(tokens[: SHORT_PROMPT + DECODED], SHORT_PROMPT)
            started = process.seconds_since_start - first["decode_seconds"]
            process.note_speed(SHORT_PROMPT, first)
            processes.append(process)
            results.engines.append(
                EngineResults(
                    contender.name,
                    process.description,
                    started,
                    is_rival=contender.is_rival,
                    reads_int4=contender.reads_int4,
                )
            )
        bandwidth = Bandwidth(threads)
        for number in range(rounds):
            results.bandwidth.append(bandwidth.measure())
            for length in lengths:
                text = window(tokens, number * (length + DECODED), length + DECODED)
                for process, engine in zip(processes, results.engines, strict=True):
                    if length in engine.left_out:
                        continue
                    # Not in a later round: a median needs a figure of each.
                    if number == 0 and process.predicted_seconds(length) > most_seconds:
                        engine.left_out.append(length)
                        continue
                    say(f"round {number + 1} of {rounds}, {length:,} tokens, {engine.name}")
                    _add(engine.contexts, length, process, text)
    for contender, engine in zip(taking_part, results.engines, strict=True):
        if engine.contexts and not contender.is_rival:
            say(f"repeated tokens, {contender.name}")
            length = min(engine.contexts)
            with Process(contender) as process:
                again: dict[int, Measured] = {}
                _add(again, length, process, tokens[:1] * (length + DECODED))
                engine.repeated = again[length]
    return results


def _lengths(prompts: Sequence[int], args: ModelArgs) -> list[int]:
    most = args.max_position_embeddings - DECODED
    if most < 1 or not prompts or min(prompts) < 1:
        raise UserError(
            f"Prompts of {', '.join(map(str, prompts)) or 'no length'} tokens: at least 1 is "
            f"needed, and {DECODED} positions of the model's context for the answer."
        )
    return sorted({min(length, most) for length in prompts})


def _add(
    contexts: dict[int, Measured], length: int, process: Process, tokens: Sequence[int]
) -> None:
    answer = process.run(tokens, length)
    process.note_speed(length, answer)
    if length not in contexts:
        contexts[length] = Measured(
            length,
            len(tokens) - length,
            peak_bytes=answer["peak_bytes"],
            touched_bytes=answer["touched_bytes"],
        )
    if answer.get("experts") is not None:
        contexts[length].experts.append(answer["experts"])
    contexts[length].first_token_seconds.append(answer["first_token_seconds"])
    contexts[length].decode_seconds.append(answer["decode_seconds"])


class Process:
    """A running contender."""

    def __init__(self, contender: Contender) -> None:
        self._name, self._recomputes = contender.name, contender.recomputes
        self._start = time.perf_counter()
        self._process = subprocess.Popen(
            contender.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.description = str(self._answer()["description"])
        except BaseException:
            self._end()
            raise
        self._speed = (0, 0.0, 0.0)  # tokens of a prompt, its seconds, seconds of decoding

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def seconds_since_start(self) -> float:
        """How long ago the process was started."""
        return time.perf_counter() - self._start

    def run(self, tokens: Sequence[int], prompt: int) -> dict[str, Any]:
        """One conversation; the answer is as `worker.py` says. Raises UserError when it fails."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"tokens": [*tokens], "prompt": prompt}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return self._answer()

    def note_speed(self, prompt: int, answer: dict[str, Any]) -> None:
        """Remember the longest prompt so far, from which longer ones are predicted."""
        if prompt >= self._speed[0]:
            self._speed = (prompt, answer["first_token_seconds"], answer["decode_seconds"])

    def predicted_seconds(self, prompt: int) -> float:
        """What a prompt of this length will take at the speed seen so far."""
        seen, first, decode = self._speed
        longer = prompt / seen
        return first * longer + (decode * longer if self._recomputes else decode)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"The engine {self._name} ended, with status {self._process.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"The engine {self._name}: {answer['error']}")
        return dict(answer)

    def _end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
