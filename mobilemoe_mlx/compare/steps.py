"""The same training in both frameworks, step by step: `mobilemoe compare --train-steps`."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mobilemoe_mlx import files
from mobilemoe_mlx.all_or_none import write_together
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.compare.torch_training import TorchStep, TorchTrainer, trained
from mobilemoe_mlx.compare.training_side import (
    batch_of,
    by_published_name,
    settings,
)
from mobilemoe_mlx.compare.versions import versions
from mobilemoe_mlx.data.corpus_texts import corpus_texts
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import LayerTrace
from mobilemoe_mlx.numerics.json_values import json_values
from mobilemoe_mlx.quantized import float_model
from mobilemoe_mlx.train.step import Trainer

import torch  # isort: skip  (after torch_training, which explains a missing PyTorch)

ROWS = 2  # of a batch
PEAK_LR = 1e-3


@dataclass(frozen=True)
class Flip:
    """An expert that the two choose differently, the first of its step."""

    layer: int
    row: int
    token: int
    # In PyTorch, from the last chosen score to the next: a near tie when it is small.
    margin: float


@dataclass(frozen=True)
class Step:
    """One step of both."""

    step: int  # from 1
    mlx_loss: float  # mean cross-entropy before the step, nats
    torch_loss: float
    mlx_grad_norm: float  # before clipping
    torch_grad_norm: float
    # After the step: ||w(MLX) - w(PyTorch)|| over the way that PyTorch has gone from the start.
    weight_distance: float
    same_experts: float  # share of the experts chosen in the step's forward pass
    first_flip: Flip | None
    dropped: float  # share of the chosen experts that had no room, in PyTorch


@dataclass(frozen=True)
class StepsComparison:
    """Everything `mobilemoe compare --train-steps` prints and writes."""

    checkpoint: str
    quantize: bool
    capacity_factor: float | None  # None: dropless
    rows: int
    context: int
    peak_lr: float
    steps: tuple[Step, ...]
    tolerance: float  # of the losses, relative, while both choose the same experts
    versions: dict[str, str]

    @property
    def judged(self) -> float:
        """The largest relative difference of a loss before an expert was chosen differently."""
        errors = [0.0]
        for step in self.steps:
            if step.first_flip is not None:
                break
            errors.append(abs(step.mlx_loss - step.torch_loss) / abs(step.torch_loss))
        return max(errors)

    @property
    def parting(self) -> Step | None:
        """The first step in which an expert is chosen differently."""
        return next((step for step in self.steps if step.first_flip is not None), None)

    @property
    def dropped(self) -> float:
        """The share over all steps, each of which has as many choices."""
        return statistics.fmean(step.dropped for step in self.steps)

    @property
    def passed(self) -> bool:
        """Whether the losses agree for as long as the routing does."""
        return self.judged <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return dict(json_values({**dataclasses.asdict(self), "passed": self.passed}))

    def write(self, folder: Path) -> None:
        """Write steps.json and steps.png into `folder`, creating it: both or none."""
        from mobilemoe_mlx.compare.training_pictures import draw_steps  # matplotlib

        record = files.json_text(self.to_dict()).encode()
        write_together(folder, {"steps.json": record, "steps.png": draw_steps(self)})


def compare_steps(
    folder: Path,
    batches: list[np.ndarray],
    *,
    quantize: bool = False,
    capacity_factor: float | None = None,
    peak_lr: float = PEAK_LR,
    tolerance: float = 1e-4,
) -> StepsComparison:
    """Train the checkpoint on `batches`, int [rows, tokens + 1] each, in MLX and in PyTorch.

    Both start from its float32 weights (INT4 ones expanded) and take a step on each batch: AdamW,
    clipping, a cosine of the learning rate, balancing of the experts by selection biases.
    `quantize`: QAT. `capacity_factor`: see RoutingConfig. MLX's side is the project's trainer,
    PyTorch's a loop of its own.
    """
    rows, length = batches[0].shape
    stage = settings(
        "float32",
        quantize=quantize,
        capacity_factor=capacity_factor,
        rows=rows,
        context=length - 1,
        steps=len(batches),
        peak_lr=peak_lr,
    )
    trainer = Trainer(float_model(load_model(folder, mx.float32)), stage)
    optimizer, routing = stage.optimizer, stage.routing
    reference = TorchTrainer(
        load_torch_model(folder),
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        clip_norm=optimizer.clip_norm,
        z_loss=routing.z_loss,
        bias_update_rate=routing.bias_update_rate,
        quantize=quantize,
    )
    reference.model.limit_capacity(capacity_factor)
    start = {name: p.detach().numpy().copy() for name, p in trained(reference.model)}
    out = []
    for number, tokens in enumerate(batches, 1):
        chosen = _mlx_experts(trainer, tokens)
        ours = trainer.run(batch_of(tokens))
        theirs = reference.run(torch.from_numpy(tokens.astype(np.int64)), ours.learning_rate)
        same, flip = _routing(chosen, theirs, length - 1)
        out.append(
            Step(
                number,
                ours.loss,
                theirs.cross_entropy,
                ours.grad_norm,
                theirs.grad_norm,
                _distance(by_published_name(trainer.trained_parameters()), reference, start),
                same,
                flip,
                theirs.dropped,
            )
        )
    return StepsComparison(
        str(folder),
        quantize,
        capacity_factor,
        rows,
        length - 1,
        peak_lr,
        tuple(out),
        tolerance,
        versions("mlx", "torch"),
    )


def read_batches(
    path: str | Path, tokenizer: Any, steps: int, rows: int, context: int
) -> list[np.ndarray]:
    """Texts of a file or folder (`corpus_texts`), end to end, as int32 [rows, context + 1] each.

    A short text is read again from its beginning. Raises UserError for one of a single token.
    """
    from mobilemoe_mlx.chat_format import encode_text

    needed = steps * rows * (context + 1)
    tokens: list[int] = []
    for text in corpus_texts(path):
        tokens += encode_text(tokenizer, text)
        if len(tokens) >= needed:
            break
    if len(tokens) < 2:
        raise UserError(f"{path} has {len(tokens)} tokens: there is nothing to train on.")
    array = np.resize(np.array(tokens, np.int32), needed)
    return list(array.reshape(steps, rows, context + 1))


def _mlx_experts(trainer: Trainer, tokens: np.ndarray) -> list[np.ndarray]:
    """What the trainer's next forward pass will choose, per layer [tokens, slots]."""
    model, trace = trainer.model, list[LayerTrace]()
    model.update(trainer.computed_parameters())
    mx.eval(model.model(mx.array(tokens[:, :-1].astype(np.int32)), trace=trace))
    return [np.array(t.routing.experts) for t in trace if t.routing.logits.shape[-1]]


def _routing(ours: list[np.ndarray], theirs: TorchStep, context: int) -> tuple[float, Flip | None]:
    """The share of experts in common, and the first difference, by layers."""
    common, total, first = 0, 0, None
    for layer, (mine, other) in enumerate(zip(ours, theirs.experts, strict=True)):
        both = (mine[:, :, None] == other.numpy()[:, None, :]).sum(axis=(1, 2))
        common, total = common + int(both.sum()), total + mine.size
        different = np.flatnonzero(both < mine.shape[1])
        if first is None and different.size:
            scores = -np.sort(-theirs.biased[layer][different[0]].detach().numpy())
            margin = float(scores[mine.shape[1] - 1] - scores[mine.shape[1]])
            row, token = divmod(int(different[0]), context)
            first = Flip(layer, row, token, margin)
    return (common / total if total else 1.0), first


def _distance(
    ours: dict[str, np.ndarray], reference: TorchTrainer, start: dict[str, np.ndarray]
) -> float:
    apart, gone = 0.0, 0.0
    for name, parameter in trained(reference.model):
        theirs = parameter.detach().numpy()
        apart += float(np.square(ours[name] - theirs, dtype=np.float64).sum())
        gone += float(np.square(theirs - start[name], dtype=np.float64).sum())
    return math.sqrt(apart / gone) if gone else 0.0
