"""What a quickstart produced, and the figures that its report and `--json` give."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.engines import default_engine
from mobilemoe_mlx.export.coreml.package import Exported
from mobilemoe_mlx.quickstart.samples import QUESTION, Sample
from mobilemoe_mlx.quickstart.text_bytes import bits_per_byte
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import Recipe
from mobilemoe_mlx.verify.verdict import Verdict


@dataclass(frozen=True)
class Results:
    """Everything that the steps of a quickstart returned."""

    recipe: Recipe
    corpus: dict[str, Any]  # statistics of data.stdlib_corpus
    training: Path  # the run's folder
    model_folder: Path  # the INT4 checkpoint
    unigram: dict[str, float]  # stage -> nats per target
    target_bytes: dict[str, float]  # stage -> bytes of text of an average held-out target
    samples: list[Sample]
    exported: Exported
    verified: Verdict
    seconds: dict[str, float]  # step -> wall time


@dataclass(frozen=True)
class StageFigures:
    """A stage of training. Losses: held-out, nats per target; in SFT and QAT, of answers alone."""

    tokens: int
    loss_before: float
    loss_after: float
    bits_per_byte: float  # after
    unigram_loss: float
    tokens_per_second: float  # median of the steps
    load_entropy: float  # at the last step, mean over layers; 1: all experts are used alike
    busiest_expert: float  # at the last step, times the mean
    experts_without_a_token: int  # at the last step, all layers together


@dataclass(frozen=True)
class Figures:
    """The report's numbers."""

    stages: dict[str, StageFigures]
    loss_bf16: float  # nats per target on the held-out answers, before QAT
    loss_nearest_int4: float  # the same weights, rounded to nearest
    loss_qat_int4: float  # after QAT
    total_parameters: int
    active_parameters: int
    checkpoint_bytes: int  # the INT4 checkpoint's safetensors
    package_bytes: int
    package_proved: bool
    decode_engine: str  # that wrote the INT4 checkpoint's answers
    decode_tokens_per_second: float | None  # of the answers; None: none is long enough
    seconds: dict[str, float]  # step -> wall time

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return dataclasses.asdict(self)


def figures(results: Results) -> Figures:
    """Read the run's metrics and put the numbers together."""
    qat = json.loads((results.training / "qat" / "quantization.json").read_text("utf-8"))
    sizes = account(results.recipe.model)
    decode = [
        sample.statistics.generated_tokens_per_second
        for sample in results.samples
        if sample.kind == QUESTION  # which the INT4 checkpoint answers
    ]
    rates = [rate for rate in decode if rate is not None]
    return Figures(
        stages={name: _stage(results, name) for name in results.recipe.stages},
        loss_bf16=qat["bf16"],
        loss_nearest_int4=qat["round_to_nearest_int4"],
        loss_qat_int4=qat["qat_int4"],
        total_parameters=sizes.total_parameters,
        active_parameters=sizes.active_parameters,
        checkpoint_bytes=sum(
            file.stat().st_size for file in results.model_folder.glob("*.safetensors")
        ),
        package_bytes=results.exported.package_bytes,
        package_proved=results.verified.proved,
        decode_engine=default_engine(results.model_folder),
        decode_tokens_per_second=statistics.median(rates) if rates else None,
        seconds=results.seconds,
    )


def _stage(results: Results, name: str) -> StageFigures:
    records = read_metrics(results.training / name / "metrics.jsonl")
    heldout = [record["heldout_loss"] for record in records if "heldout_loss" in record]
    steps = [record for record in records if "loss" in record]
    return StageFigures(
        tokens=sum(record["tokens"] for record in steps),
        loss_before=heldout[0],
        loss_after=heldout[-1],
        bits_per_byte=bits_per_byte(heldout[-1], results.target_bytes[name]),
        unigram_loss=results.unigram[name],
        tokens_per_second=statistics.median(record["tokens_per_second"] for record in steps),
        load_entropy=statistics.mean(steps[-1]["load_entropy"]),
        busiest_expert=max(steps[-1]["max_load"]),
        experts_without_a_token=int(sum(steps[-1]["dead_experts"])),
    )
