"""What INT4 costs the quickstart's model: held-out loss, task by task, and tensor by tensor.

    python benchmarks/quantization_cost.py [--quickstart runs/quickstart] [--output runs/int4-cost]

Compares with the BF16 model after SFT: the same rounded to nearest by both rules of scales, the
quickstart's QAT, and `qat-lora` with as many steps of as many tokens of the same data. Prints
Markdown: held-out losses, the tasks of `mobilemoe corpus --tasks`, also for the model before SFT,
and what `mobilemoe sensitivity` says; draws tasks.png and sensitivity.png. What is in the
output folder already is not made again. Eight minutes on two processor cores, and the extras
`eval` and `plot`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported

TOKENS = 16_384  # of the held-out answers that sensitivity is measured on
EXPERTS = 4
BUDGETS = ("1.3MB", "1.6MB", "2.5MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("runs/int4-cost"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    models = make_models(args.quickstart, args.output)
    print(f"{losses(models, args.quickstart)}\n", flush=True)
    tasks = args.output / "tasks"
    if not tasks.is_dir():
        mobilemoe("corpus", tasks, "--tasks")
    compared = compare(models, tasks, args.output, "tasks")
    print(f"{task_table(compared)}\n", flush=True)
    before_sft = args.quickstart / "training" / "pretrain" / "model"
    rounded = convert(before_sft, args.output / "pretrain-int4")
    two = {"pretrain-BF16": before_sft, "pretrain-INT4": rounded}
    print(f"{task_table(compare(two, tasks, args.output, 'pretrain-tasks'))}\n", flush=True)
    print(sensitivity(args.quickstart, args.output), flush=True)


def mobilemoe(*words: Any) -> str:
    command = [sys.executable, "-m", "mobilemoe_mlx.cli.main", *map(str, words)]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def make_models(quickstart: Path, output: Path) -> dict[str, Path]:
    """The models that are compared, BF16 first."""
    stages = quickstart / "training"
    bf16 = stages / "sft" / "model"
    return {
        "BF16": bf16,
        "round-to-nearest": convert(bf16, output / "round-to-nearest"),
        "paper-rule": convert(bf16, output / "paper-rule", "--scale-rule", "paper"),
        "QAT": stages / "qat" / "model",
        "qat-lora": qat_lora(bf16, quickstart, output),
    }


def convert(model: Path, target: Path, *more: str) -> Path:
    if not target.is_dir():
        mobilemoe("convert", model, target, "--quantize", *more)
    return target


def qat_lora(base: Path, quickstart: Path, output: Path) -> Path:
    """The steps of the quickstart's QAT, with its rows and its data."""
    target = output / "qat-lora-int4"
    if target.is_dir():
        return target
    stage = json.loads((quickstart / "training" / "recipe.json").read_text())["stages"]["qat"]
    rows, context = stage["batch_size"], stage["data"]["context"]
    settings = {
        "steps": -(-stage["tokens"] // (rows * context)),
        "batch_size": rows,
        "data.context": context,
        "data.heldout": quickstart / "corpus" / "qa.heldout.jsonl",
        "data.heldout_tokens": stage["data"]["heldout_tokens"],
        "patience": 0,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run = output / "qat-lora"
    data = quickstart / "corpus" / "qa.train.jsonl"
    mobilemoe("finetune", base, "--data", data, "--run", run, "--method", "qat-lora", *words)
    mobilemoe("fuse", base, run / "adapter", target, "--to", "int4")
    return target


def losses(models: dict[str, Path], quickstart: Path) -> str:
    """Held-out losses of all answers, by document."""
    from mobilemoe_mlx.checkpoint.load_save import load_model
    from mobilemoe_mlx.evaluation.paired import paired_interval
    from mobilemoe_mlx.finetune.heldout_data import open_heldout_data
    from mobilemoe_mlx.sensitivity.losses import document_losses

    data = str(quickstart / "corpus" / "qa.heldout.jsonl")
    rows = [["model", "held-out loss", "over BF16"]]
    base = None
    for name, folder in models.items():
        held = open_heldout_data(data, folder, whole_file=True)
        model = load_model(folder)
        found = document_losses(model, held.batches, document_mask=held.document_mask)
        base = base or found
        over = paired_interval(base.sums, found.sums, weights=base.targets)
        cells = [name, f"{found.mean:.4f}"]
        cells.append(
            f"{over.mean:+.4f} ({over.low:+.4f} to {over.high:+.4f})" if found is not base else ""
        )
        rows.append(cells)
    assert base is not None
    note = f"{len(base.sums):,} documents, {int(base.targets.sum()):,} targets"
    return f"{note}\n\n{markdown(rows)}"


def compare(models: dict[str, Path], tasks: Path, output: Path, name: str) -> dict[str, Any]:
    figures = output / f"{name}.json"
    if not figures.is_file():
        words = [f"{label}={folder}" for label, folder in models.items()]
        mobilemoe(
            *("eval", "--compare", *words, "--include", tasks, "--tasks", "stdlib"),
            *("--engine", "mlx", "--out", output / "evaluations"),
            *("--json", figures, "--picture", output / f"{name}.png"),
        )
    return json.loads(figures.read_text())


def task_table(compared: dict[str, Any]) -> str:
    """A row for each metric, a column for each model."""
    models = compared["models"]
    head = ["task", "metric", "questions", compared["base"], *(m["name"] for m in models)]
    rows = [head]
    for lines in zip(*(model["differences"] for model in models), strict=True):
        first = lines[0]
        cells = [first["task"], first["metric"], str(first["questions"]), f"{first['base']:.4f}"]
        rows.append([*cells, *map(difference, lines)])
    for lines in zip(*(model["averages"] for model in models), strict=True):
        cells = [f"mean of {lines[0]['tasks']} tasks", lines[0]["metric"], "", ""]
        rows.append([*cells, *map(difference, lines)])
    return markdown(rows)


def difference(line: dict[str, Any]) -> str:
    interval = line["difference"]
    text = f"{interval['mean']:+.4f} ({interval['low']:+.4f} to {interval['high']:+.4f})"
    if test := line.get("test"):
        text += f"; {test['gained']} gained, {test['lost']} lost, p {test['p']:.2f}"
        text += f", Holm {line['p_holm']:.2f}"
    return text


def markdown(rows: list[list[str]]) -> str:
    def lines() -> Iterator[str]:
        for number, row in enumerate(rows):
            yield "| " + " | ".join(row) + " |"
            if not number:
                yield "|" + "---|" * len(row)

    return "\n".join(lines())


def sensitivity(quickstart: Path, output: Path) -> str:
    text = output / "sensitivity.txt"
    if not text.is_file():
        said = mobilemoe(
            *("sensitivity", quickstart / "training" / "sft" / "model", "--tokens", TOKENS),
            *("--data", quickstart / "corpus" / "qa.heldout.jsonl"),
            *("--experts", EXPERTS, "--budget", *BUDGETS),
            *("--json", output / "sensitivity.json", "--picture", output / "sensitivity.png"),
        )
        text.write_text(said)
    return text.read_text()


if __name__ == "__main__":
    main()
