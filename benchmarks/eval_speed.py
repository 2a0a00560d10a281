"""Multiple-choice questions a second: our evaluation beside mlx-lm's own, on one converted folder.

    mobilemoe convert runs/quickstart/training/qat/model runs/qat-mlx --to mlx
    python benchmarks/eval_speed.py runs/qat-mlx --questions 20

Both are models of lm-evaluation-harness and get the very same requests: questions of four choices
cut from the standard library's documentation, in three shapes. Each has a process of its own; they
take turns, and figures are medians, ratios medians of the rounds' ratios to the fastest of
mlx-lm's. Encoding is timed, loading is not. mlx-lm's loglikelihood takes one question at a time,
whatever its batch size. It is measured as it loads the folder, whose types are slow on a CPU, and
with everything in float32, which the CPU is fast at, by OpenBLAS's own number of threads and by
one. Ours is MLX in float32 and, for INT4, the CPU engine as it is by default. Also prints by how
much log-likelihoods of ours on MLX differ at most from those of mlx-lm in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported, in the workers too

import mlx.core as mx  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402

from mobilemoe_mlx import files, text_table  # noqa: E402
from mobilemoe_mlx.bench.machine import Bandwidth, cpu  # noqa: E402
from mobilemoe_mlx.bench.prompts import real_tokens, window  # noqa: E402
from mobilemoe_mlx.checkpoint.check import open_checkpoint  # noqa: E402
from mobilemoe_mlx.checkpoint.layouts import Layout  # noqa: E402
from mobilemoe_mlx.cpu_kernel.library import default_threads  # noqa: E402
from mobilemoe_mlx.engines import model_args  # noqa: E402
from mobilemoe_mlx.tokenizer import load_tokenizer  # noqa: E402


class Shape(NamedTuple):
    """Tokens of the parts of a question."""

    same: int  # of the examples before it, where all questions have the same
    own: int  # of the rest of the context
    choice: int


SHAPES = {
    "zero-shot, 60 + 4 x 12 tokens": Shape(0, 60, 12),
    "five examples of its own, 460 + 4 x 12": Shape(0, 460, 12),
    "five examples for all, 400 and 60 + 4 x 1": Shape(400, 60, 1),
}
OURS, OURS_CPU = "ours", "ours on the CPU engine"  # the second for INT4 alone
LOADED, FLOAT32 = "mlx-lm", "mlx-lm float32"
ONE_THREAD = f"{FLOAT32} on one thread"
CONTENDERS = (OURS, OURS_CPU, LOADED, FLOAT32, ONE_THREAD)


def questions(folder: str, shape: Shape, count: int, seed: int) -> list[list[str]]:
    """[context, choice] of four choices a question."""
    path = files.user_path(folder)
    tokenizer, tokens = load_tokenizer(path), real_tokens(path, model_args(path))
    place = random.Random(seed)

    def text(length: int) -> str:
        return tokenizer.decode(window(tokens, place.randrange(len(tokens)), length))

    same = text(shape.same)
    pairs = []
    for _ in range(count):
        context = f"{same}\n{text(shape.own).strip()}\nAnswer:"
        for letter in "ABCD":
            choice = letter if shape.choice == 1 else text(shape.choice).strip() or letter
            pairs.append([context.strip(), f" {choice}"])
    return pairs


def is_int4(folder: str) -> bool:
    return open_checkpoint(files.user_path(folder)).layout is not Layout.FLOAT


def worker(name: str, folder: str) -> None:
    """Answers lines of requests on standard output, with the seconds that they took."""
    model: Any
    if name in (OURS, OURS_CPU):
        from mobilemoe_mlx.evaluation.harness_model import HarnessModel
        from mobilemoe_mlx.evaluation.open_scorer import open_scorer

        model = HarnessModel(open_scorer(folder, "mlx" if name == OURS else "cpu"))
    else:
        from mlx_lm.evaluate import MLXLM

        model = MLXLM(folder, use_chat_template=False, trust_remote_code=True)
        if name != LOADED:
            model._model.set_dtype(mx.float32)
    for line in sys.stdin:
        pairs = [tuple(pair) for pair in json.loads(line)]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        start = time.perf_counter()
        values = model.loglikelihood(requests)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "values": [float(v) for v, _ in values]}), flush=True)


def ask(process: subprocess.Popen[str], pairs: list[list[str]]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(pairs) + "\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--questions", type=int, default=50, help="of each shape (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", default="0,1,2", help="which, by number (%(default)s)")
    parser.add_argument("--contenders", help=f"which take part (all of {', '.join(CONTENDERS)})")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.folder)
        return
    shapes = [[*SHAPES][int(number)] for number in options.shapes.split(",")]
    names = [name for name in CONTENDERS if name != OURS_CPU or is_int4(options.folder)]
    if options.contenders:
        names = options.contenders.split(",")
    rates: dict[tuple[str, str], list[float]] = {}
    differ = dict.fromkeys(shapes, 0.0)
    bandwidth = Bandwidth(default_threads())
    readings = []
    with ExitStack() as stack:
        processes = {name: stack.enter_context(started(name, options.folder)) for name in names}
        for shape in shapes:  # compiles what is compiled on first use
            for process in processes.values():
                ask(process, questions(options.folder, SHAPES[shape], 1, 0))
        for number in range(options.rounds):
            readings.append(bandwidth.measure())
            for shape in shapes:
                pairs = questions(options.folder, SHAPES[shape], options.questions, number + 1)
                answers = {name: ask(process, pairs) for name, process in processes.items()}
                for name, answer in answers.items():
                    rate = options.questions / answer["seconds"]
                    rates.setdefault((shape, name), []).append(rate)
                    print(f"{shape}, {name}: {rate:.2f}", file=sys.stderr)
                if FLOAT32 in names:
                    both = zip(answers[OURS]["values"], answers[FLOAT32]["values"], strict=True)
                    differ[shape] = max(differ[shape], *(abs(a - b) for a, b in both))
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
    rows = [["questions/s", *names, "ratio", "differ by"]]
    for shape in shapes:
        rivals = [rates[shape, name] for name in names if name not in (OURS, OURS_CPU)]
        best = max(rivals, key=statistics.median)
        ratio = statistics.median(a / b for a, b in zip(rates[shape, OURS], best, strict=True))
        medians = (f"{statistics.median(rates[shape, name]):.2f}" for name in names)
        rows.append([shape, *medians, f"{ratio:.1f}", f"{differ[shape]:.1e}"])
    print(f"{cpu()}, {statistics.median(readings) / 1e9:.1f} GB/s\n\n{text_table.columns(rows)}")


def started(name: str, folder: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, folder, "--worker", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | ({"OPENBLAS_NUM_THREADS": "1"} if name == ONE_THREAD else {}),
    )


if __name__ == "__main__":
    main()
