"""The quickstart's report: Markdown with pictures."""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mobilemoe_mlx import files
from mobilemoe_mlx.accounting import account
from mobilemoe_mlx.export.coreml.package import Exported
from mobilemoe_mlx.quickstart.samples import Sample
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import STAGE_TITLES, Recipe
from mobilemoe_mlx.verify.verdict import Verdict


@dataclass(frozen=True)
class Results:
    """What the quickstart produced."""

    recipe: Recipe
    corpus: dict[str, Any]  # statistics of data.stdlib_corpus
    training: Path  # the run's folder
    model_folder: Path  # the INT4 checkpoint
    unigram: dict[str, float]  # stage -> nats a target
    samples: list[Sample]
    exported: Exported
    verified: Verdict
    seconds: dict[str, float]  # step -> wall time


def write_report(results: Results, path: Path) -> Path:
    """Write the report of `results` to `path`."""
    parts = [
        "# MobileMoE quickstart report",
        _summary(results),
        "## Data",
        _data(results),
        "## Model",
        _model(results),
        "## Loss",
        _losses(results),
        "## INT4",
        _int4(results),
        "## Expert load",
        _load(results),
        "## Samples of the INT4 checkpoint",
        _samples(results),
        "## Core ML package",
        _package(results),
        "## Speed",
        _speed(results),
    ]
    files.write(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _summary(results: Results) -> str:
    device = mx.default_device().type
    where = "GPU" if device == mx.DeviceType.gpu else "CPU"
    return (
        f"A mixture of experts trained from nothing through all four stages on {platform.system()} "
        f"({platform.machine()}, MLX on the {where}), on the source and documentation of Python "
        f"{results.corpus['python']}'s standard library. The INT4 checkpoint is in "
        f"`{results.model_folder.relative_to(results.training.parent)}`."
    )


def _data(results: Results) -> str:
    rows = [
        [kind, f"{train['records']:,}", f"{train['characters']:,}", f"{held['records']:,}"]
        for kind, train in results.corpus["train"].items()
        for held in [results.corpus["heldout"][kind]]
    ]
    table = _table(["text", "records", "characters", "held-out records"], rows)
    modules = ", ".join(f"`{name}`" for name in results.corpus["heldout_modules"])
    return f"{table}\n\nHeld-out modules, never trained on: {modules}."


def _model(results: Results) -> str:
    args = results.recipe.model
    sizes = account(args)
    file = sum(f.stat().st_size for f in results.model_folder.glob("*.safetensors"))
    rows = [
        ["layers, hidden size", f"{args.num_hidden_layers}, {args.hidden_size}"],
        [
            "experts",
            f"{args.num_local_experts} routed (top-{args.num_experts_per_tok}), 1 shared",
        ],
        ["parameters", f"{sizes.total_parameters:,} ({sizes.active_parameters:,} active)"],
        ["vocabulary", f"{args.vocab_size:,}"],
        ["INT4 checkpoint", f"{file:,} bytes"],
    ]
    return _table(["", "MobileMoE-tiny"], rows)


def _losses(results: Results) -> str:
    rows = []
    for name, stage in results.recipe.stages.items():
        records = read_metrics(results.training / name / "metrics.jsonl")
        heldout = [r["heldout_loss"] for r in records if "heldout_loss" in r]
        rows.append(
            [
                STAGE_TITLES[name],
                f"{stage.steps * stage.batch_size * stage.data.context:,}",
                str(stage.data.context),
                f"{stage.optimizer.peak_lr:g}, {stage.optimizer.schedule}",
                f"{results.unigram[name]:.3f}",
                f"{heldout[0]:.3f}",
                f"**{heldout[-1]:.3f}**",
            ]
        )
    head = ["stage", "tokens", "context", "peak rate", "unigram", "before", "after"]
    return (
        "Held-out cross-entropy, nats a token (SFT and QAT: of the answers only), against guessing "
        f"by frequency alone.\n\n{_table(head, rows)}\n\n![losses](losses.png)"
    )


def _int4(results: Results) -> str:
    numbers = json.loads((results.training / "qat" / "quantization.json").read_text("utf-8"))
    rows = [
        ["BF16, before QAT", f"{numbers['bf16']:.4f}"],
        ["INT4, rounded to nearest", f"{numbers['round_to_nearest_int4']:.4f}"],
        ["INT4, after QAT", f"{numbers['qat_int4']:.4f}"],
    ]
    return (
        "Loss on the same held-out answers. QAT has trained for longer than the other two, so part "
        f"of its gain is plain training.\n\n{_table(['weights', 'held-out loss'], rows)}"
    )


def _load(results: Results) -> str:
    rows = []
    for name in results.recipe.stages:
        last = [r for r in read_metrics(results.training / name / "metrics.jsonl") if "loss" in r]
        rows.append(
            [
                STAGE_TITLES[name],
                f"{statistics.mean(last[-1]['load_entropy']):.3f}",
                f"{max(last[-1]['max_load']):.2f}",
                str(int(sum(last[-1]["dead_experts"]))),
            ]
        )
    head = ["stage", "load entropy (1 = even)", "busiest expert / mean", "experts without a token"]
    return f"At the last step of each stage.\n\n{_table(head, rows)}\n\n![load](expert-load.png)"


def _samples(results: Results) -> str:
    parts = ["Greedy, repetition penalty 1.1. A model this small learns form, not facts."]
    for sample in results.samples:
        title = "Question" if sample.is_chat else "Code to continue"
        parts.append(
            f"{title}:\n\n```text\n{sample.prompt}\n```\n\nAnswer:\n\n```text\n{sample.text}\n```"
        )
    return "\n\n".join(parts)


def _package(results: Results) -> str:
    exported = results.exported
    return (
        f"`{exported.package.name}` ({exported.package_bytes:,} bytes) and "
        f"`{exported.resources.name}` hold the INT4 checkpoint for an app (docs/ios.md). The saved "
        "package was evaluated op by op in numpy and compared with MLX:\n\n"
        f"```text\n{results.verified.text()}\n```"
    )


def _speed(results: Results) -> str:
    rows = []
    for name in results.recipe.stages:
        records = read_metrics(results.training / name / "metrics.jsonl")
        rates = [r["tokens_per_second"] for r in records if "tokens_per_second" in r]
        rows.append(
            [f"training, {STAGE_TITLES[name]}", f"{statistics.median(rates):,.0f} tokens/s"]
        )
    decode = [s.statistics.generated_tokens_per_second for s in results.samples]
    rates = [rate for rate in decode if rate is not None]
    if rates:
        rows.append(["INT4 decoding", f"{statistics.median(rates):,.0f} tokens/s"])
    rows += [[name, f"{seconds:.0f} s"] for name, seconds in results.seconds.items()]
    return _table(["", "median, or wall time"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
