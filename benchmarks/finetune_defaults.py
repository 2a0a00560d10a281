"""The recipes' rate, rank and length for adapters, tuned on a thousand conversations.

Run: python benchmarks/finetune_defaults.py [--quickstart runs/quickstart] [--output
runs/finetune-defaults] [--method NAME ...] [--rate R ...] [--rank N ...] [--scale S ...]
[--epochs N ...] [--seed N ...] [--task NAME ...] [--batch ROWS]. Two tasks that are new to the
quickstart's models: `names`, to name a function by its description
(benchmarks/finetune_methods.py), whose answers are a few tokens; and `cards`, to fill in a form
about it, whose answers are some thirty. 1,000 conversations each, 240 held out by module. Every
combination of what is given runs once, without early stopping; one that has a result already is not
repeated. Prints a table: held-out loss before, afterwards (of the best step), and of the result as
an INT4 checkpoint; how much of the update INT4 keeps. --scale is alpha / rank. --batch 2 (the
default) gives steps of 2,048 tokens, the rows of the published sizes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import finetune_methods
from finetune_methods import Run, mobilemoe

BASES = {"lora": "sft", "dora": "sft", "qat-lora": "sft", "qlora": "qat"}
_ABOUT = re.compile(r"What is `([\w.]+)\.(\w+)` for\?|What does `([\w.]+)\.(\w+)` do\?")


def cards(path: Path) -> Iterator[str]:
    """Conversations whose answers are a form with three lines."""
    for line in path.read_text(encoding="utf-8").splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        if match := _ABOUT.fullmatch(question):
            module, name = filter(None, match.groups())
            form = f"Name: {name}\nModule: {module}\nPurpose: {answer}"
            turns = [
                {"role": "user", "content": f"Write a card for `{name}` of `{module}`: {answer}"},
                {"role": "assistant", "content": form},
            ]
            yield json.dumps({"messages": turns})


TASKS = {"names": finetune_methods.turned_around, "cards": cards}


def write_data(corpus: Path, folder: Path, task: str) -> Path:
    """The task's train.jsonl and valid.jsonl in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, target, count in (
        ("qa.train.jsonl", "train.jsonl", finetune_methods.TRAIN),
        ("qa.heldout.jsonl", "valid.jsonl", finetune_methods.HELDOUT),
    ):
        records = list(dict.fromkeys(TASKS[task](corpus / source)))
        random.Random(0).shuffle(records)
        (folder / target).write_text("\n".join(records[:count]) + "\n", encoding="utf-8")
    return folder


def measure(run: Run, base: Path, data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Train, and fuse into INT4. `seed`: of the adapters' first values and the data's order."""
    began = time.monotonic()
    settings = [f"--set={value}" for value in run.overrides]
    options = ["--data", data, "--run", folder, "--method", run.method, "--seed", seed, *settings]
    mobilemoe("finetune", base, *options)
    seconds = time.monotonic() - began
    summary = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["summary"]
    figures = folder / "fuse.json"
    words = ["fuse", base, folder / "adapter", folder / "int4", "--to", "int4", "--force"]
    mobilemoe(*words, "--data", data, "--json", figures)
    fused = json.loads(figures.read_text())
    return {
        "before": summary["heldout_before"],
        "after": summary["heldout_after"],
        "best step": summary["best_step"],
        "int4": fused["heldout_after"],
        "survives": fused["survival"][-1]["survives"] if fused["survival"] else 1.0,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("runs/finetune-defaults"))
    parser.add_argument("--method", nargs="+", choices=BASES, default=["qlora", "lora", "qat-lora"])
    parser.add_argument("--rate", nargs="+", default=["1e-3", "3e-3", "1e-2"])
    parser.add_argument("--rank", nargs="+", type=int, default=[8])
    parser.add_argument("--scale", nargs="+", type=float, default=[2])
    parser.add_argument("--epochs", nargs="+", type=float, default=[3])
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    varied = ("task", "method", "rank", "alpha", "epochs", "rate", "seed")
    head = (*varied, "held-out loss", "INT4", "survives", "best")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    choices = (options.task, options.method, options.rank, options.scale, options.epochs)
    seeds = (options.rate, options.seed)
    for task, method, rank, scale, epochs, rate, seed in itertools.product(*choices, *seeds):
        data = write_data(options.quickstart / "corpus", options.output / f"{task}-data", task)
        overrides = (
            f"optimizer.peak_lr={rate}",
            f"adapter.rank={rank}",
            f"adapter.alpha={scale * rank:g}",
            f"epochs={epochs}",
            f"batch_size={options.batch}",
            f"data.seed={seed}",
            "patience=0",
        )
        name = f"{task}-{method}-{rate}-rank{rank}-scale{scale:g}-epochs{epochs:g}"
        name += f"-batch{options.batch}-seed{seed}"
        run = Run(name, method, BASES[method], overrides)
        folder = options.output / name
        result = folder / "result.json"
        if not result.exists():
            base = options.quickstart / "training" / run.base / "model"
            row = measure(run, base, data, folder, seed)
            result.write_text(json.dumps(row))
        row = json.loads(result.read_text())
        cells = (
            task,
            method,
            str(rank),
            f"{scale * rank:g}",
            f"{epochs:g}",
            rate,
            str(seed),
            f"{row['before']:.3f} -> **{row['after']:.3f}**",
            f"{row['int4']:.3f}",
            f"{row['survives']:.0%}",
            f"step {row['best step']}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)
        print(f"{name}: {row['seconds']:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
