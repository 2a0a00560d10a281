"""Every method of `mobilemoe finetune` on the quickstart's models and a task that is new to them.

Run: python benchmarks/finetune_methods.py [--quickstart runs/quickstart] [--output
runs/finetune-methods] [--set KEY=VALUE ...]. Naming a function by its description: 1,000
conversations made from the quickstart's questions, held out by module. Each method runs as a
process of its own, with its recipe as it stands but for the rate of whole weights. A run that has a
result already is not repeated. Prints a table as Markdown (held-out loss, that of
the result rounded to INT4, trained parameters, peak memory, time) and answers before and after;
draws losses.png. About eleven minutes on two processor cores, of which the seven methods take nine.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported

TRAIN, HELDOUT = 1000, 240
SHOWN = ("lora", "full")  # whose answers are printed beside those of before
PROMPTS = (
    "Read all lines of a file and return them as a list.",
    "Return True if the path is a directory.",
    "Close the connection to the server.",
)
_ABOUT_ONE = re.compile(
    r"What does `([\w.]+)` do\?|What is `([\w.]+)` for\?"
    r"|Explain the (?:method|function) `([\w.]+)`\."
)


class Run(NamedTuple):
    """One row of the table."""

    name: str
    method: str
    base: str  # the quickstart's stage
    overrides: tuple[str, ...] = ()


# The recipes' rate of whole weights is for the published sizes; this model was trained at 8e-3.
WHOLE = ("optimizer.peak_lr=1e-3",)
RUNS = (
    Run("lora, attention only", "lora", "sft", ('adapter.modules=["attention"]',)),
    Run("lora", "lora", "sft"),
    Run("dora", "dora", "sft"),
    Run("qlora", "qlora", "qat"),
    Run("qat-lora", "qat-lora", "sft"),
    Run("qat-lora on INT4", "qat-lora", "qat"),
    Run("experts", "experts", "sft", WHOLE),
    Run("full", "full", "sft", WHOLE),
    Run("qat", "qat", "sft", WHOLE),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("runs/finetune-methods"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    data = write_data(options.quickstart / "corpus", options.output / "data")
    rows, curves = [], {}
    samples = {"before": answers(options.quickstart / "training" / "sft" / "model")}
    for run in RUNS:
        base = options.quickstart / "training" / run.base / "model"
        folder = options.output / re.sub(r"\W+", "-", run.name)
        result = folder / "result.json"
        if not result.exists():
            row = measure(run, base, data, folder, options.overrides)
            result.write_text(json.dumps(row))
        rows.append(json.loads(result.read_text()))
        metrics = (folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in metrics]
        curves[run.name] = [(r["step"], r["heldout_loss"]) for r in records if "heldout_loss" in r]
        if run.name in SHOWN:
            samples[run.name] = answers(base, folder)
        print(f"{run.name}: {rows[-1]}", file=sys.stderr, flush=True)
    print(table(rows))
    print(f"\nTraining took {sum(row['seconds'] for row in rows) / 60:.1f} minutes in all.\n")
    for name, lines in samples.items():
        print(f"{name}:\n" + "\n".join(f"    {line}" for line in lines))
    draw(curves, options.output / "losses.png")


def write_data(corpus: Path, folder: Path) -> Path:
    """train.jsonl and valid.jsonl in `folder`: descriptions as questions, names as answers."""
    folder.mkdir(parents=True, exist_ok=True)
    for source, target, count in (
        ("qa.train.jsonl", "train.jsonl", TRAIN),
        ("qa.heldout.jsonl", "valid.jsonl", HELDOUT),
    ):
        records = list(dict.fromkeys(turned_around(corpus / source)))
        random.Random(0).shuffle(records)
        (folder / target).write_text("\n".join(records[:count]) + "\n", encoding="utf-8")
    return folder


def turned_around(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        question, answer = (message["content"] for message in json.loads(line)["messages"])
        if match := _ABOUT_ONE.fullmatch(question):
            name = next(filter(None, match.groups())).rpartition(".")[2]
            turns = [
                {"role": "user", "content": ask(answer)},
                {"role": "assistant", "content": f"`{name}`"},
            ]
            yield json.dumps({"messages": turns})


def ask(description: str) -> str:
    return f"Name a function for this: {description}"


def mobilemoe(*arguments: Any, text: str = "") -> str:
    command = [sys.executable, "-m", "mobilemoe_mlx.cli.main", *map(str, arguments)]
    done = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout


def measure(run: Run, base: Path, data: Path, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Train, round the result to INT4, and evaluate both."""
    settings = [f"--set={value}" for value in (*run.overrides, *overrides)]
    began = time.monotonic()
    said = mobilemoe(
        "finetune", base, "--data", data, "--run", folder, "--method", run.method, *settings
    )
    seconds = time.monotonic() - began
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = records[-1]["summary"]
    found = re.search(r"trains ([\d,]+) parameters", said)
    assert found is not None
    return {
        "name": run.name,
        "trained": found[1],
        "before": summary["heldout_before"],
        "after": summary["heldout_after"],
        "int4": heldout_loss_in_int4(run, base, data, folder),
        "memory": max(record.get("peak_memory", 0) for record in records),
        "seconds": seconds,
    }


def heldout_loss_in_int4(run: Run, base: Path, data: Path, folder: Path) -> float:
    """Of the trained model as an INT4 checkpoint, which is made in `folder`/int4."""
    from mobilemoe_mlx.checkpoint.load_save import load
    from mobilemoe_mlx.finetune.data import open_finetune_data
    from mobilemoe_mlx.finetune.data_config import FinetuneDataConfig
    from mobilemoe_mlx.train.evaluate import heldout_loss

    packed = folder / "int4"
    if (folder / "adapter").is_dir():
        mobilemoe("fuse", base, folder / "adapter", packed, "--to", "int4", "--force")
    elif run.method == "qat":
        packed = folder / "model"
    else:
        mobilemoe("convert", folder / "model", packed, "--quantize")
    model, tokenizer = load(packed)
    record = json.loads((folder / "recipe.json").read_text())["stages"]["finetune"]["data"]
    config = FinetuneDataConfig(path=str(data), context=record["context"])
    batches = open_finetune_data(config, tokenizer, 2).stage.heldout.batches
    return heldout_loss(model, batches, document_mask=True)


def answers(base: Path, folder: Path | None = None) -> list[str]:
    """What a chat says to each of PROMPTS, first draw: of the base, or of what was trained."""
    model: list[Any] = [base]
    if folder is not None and (folder / "adapter").is_dir():
        model = [base, "--adapter", folder / "adapter"]
    elif folder is not None:
        model = [folder / "model"]
    lines = "".join(f"{ask(prompt)}\n/reset\n" for prompt in PROMPTS)
    said = mobilemoe(
        "chat",
        *model,
        "--temperature",
        1,
        "--min-p",
        0.2,
        "--seed",
        0,
        "--max-tokens",
        40,
        text=lines,
    )
    return [line for line in said.splitlines() if line.strip()]


def table(rows: list[dict[str, Any]]) -> str:
    head = ("method", "trained parameters", "held-out loss", "rounded to INT4", "memory", "time")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = (
            row["name"],
            row["trained"],
            f"{row['before']:.3f} -> **{row['after']:.3f}**",
            f"{row['int4']:.3f}",
            f"{row['memory'] / 1e9:.2f} GB",
            f"{row['seconds']:.0f} s",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for name, points in curves.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o-", markersize=3, label=name)
    axes.set(xlabel="step", ylabel="held-out loss (nats a target)")
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
