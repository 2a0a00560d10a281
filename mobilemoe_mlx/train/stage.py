"""One stage of a run, from its first step to its finished model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from mobilemoe_mlx import files
from mobilemoe_mlx.checkpoint import load_save
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.int4_rounding import as_quantized, quantize_parameters
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import fake_quantize_parameters
from mobilemoe_mlx.train.bookkeeping import Bookkeeping
from mobilemoe_mlx.train.data import StageData
from mobilemoe_mlx.train.evaluate import heldout_loss
from mobilemoe_mlx.train.processes import together
from mobilemoe_mlx.train.recipe import StageConfig
from mobilemoe_mlx.train.run_folder import StageFolder
from mobilemoe_mlx.train.signals import Stopped, StopSignals
from mobilemoe_mlx.train.step import Trainer
from mobilemoe_mlx.train.summary import StageSummary


def run_stage(
    model: Model,
    name: str,
    config: StageConfig,
    data: StageData,
    folder: StageFolder,
    tokenizer_folder: Path,
    signals: StopSignals,
    group: mx.distributed.Group,
) -> StageSummary:
    """Train `model` through a stage, going on from its last checkpoint, where `data` stands.

    Afterwards `model` holds the result, float32, and `folder.model` is written. Raises UserError
    when a loss is not finite or the disk is full, and Stopped, with everything saved, on a signal.
    """
    trainer = Trainer(model, config, group)
    with together(group):
        book = Bookkeeping(name, config, folder, data, trainer, signals)
    with book:
        run_steps(trainer, book, data, group)
        with together(group):
            summary = book.finish()
    parameters = trainer.all_parameters()
    mx.eval(parameters)
    with together(group):
        if group.rank() == 0:
            _write_model(trainer, config, folder, data, book.losses, tokenizer_folder)
    return summary


def run_steps(
    trainer: Trainer, book: Bookkeeping, data: StageData, group: mx.distributed.Group
) -> None:
    """Take the steps that are left, evaluating and saving when it is due.

    Raises UserError, with the checkpoint to go back to, when a loss is not finite; Stopped, with
    everything saved, on a signal.
    """
    try:
        while True:
            if book.evaluation_is_due:
                with _ending_with_a_checkpoint(book):
                    losses = _evaluate(trainer, book)
                with together(group):
                    book.record_evaluation(losses)
            book.save_if_due()
            if book.is_over:
                break
            with together(group):
                book.begin_step()
                batch = next(data.batches)
            with _ending_with_a_checkpoint(book):
                result = trainer.run(batch)
                if trainer.step == trainer.config.steps:  # others show in the next step's loss
                    trainer.check_finite()
            with together(group):
                book.record_step(result)
    except Stopped:
        book.save()
        raise


@contextlib.contextmanager
def _ending_with_a_checkpoint(book: Bookkeeping) -> Iterator[None]:
    """Add the stage, and the checkpoint to go back to, to what is wrong with the numbers."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{book.name}: {error}. {book.last_good_checkpoint}") from None


def _evaluate(trainer: Trainer, book: Bookkeeping) -> dict[str, float]:
    """Held-out losses by name: "start" before the first step (in QAT, of plain rounding, with that
    of BF16 beside it), "end" after the last, "now" between them."""

    def loss(parameters: dict[str, object]) -> float:
        trainer.model.update(parameters)
        trainer.model.eval()
        return heldout_loss(
            trainer.model,
            book.heldout(),
            document_mask=trainer.config.data.document_mask,
            chunk=trainer.config.compute.loss_chunk,
        )

    if trainer.step > 0:
        name = "end" if trainer.step == trainer.config.steps else "now"
        return {name: loss(trainer.computed_parameters())}
    parameters = trainer.trained_parameters()
    if not trainer.config.quantize:
        return {"start": loss(parameters)}
    rounded = tree_map(lambda p: p.astype(mx.bfloat16).astype(mx.float32), parameters)
    nearest = loss(fake_quantize_parameters(parameters, trainer.config.scale_rule))
    return {"bf16": loss(rounded), "round_to_nearest_int4": nearest, "start": nearest}


def _write_model(
    trainer: Trainer,
    config: StageConfig,
    folder: StageFolder,
    data: StageData,
    losses: dict[str, float],
    tokenizer_folder: Path,
) -> None:
    """Write the stage's model in the published layout, and before it the QAT comparison."""
    if not config.quantize:
        load_save.save(
            trainer.model, folder.model, tokenizer_folder=tokenizer_folder, overwrite=True
        )
        return
    if data.heldout.batches:  # before the model, which says that the stage is finished
        report = {
            "heldout": list(config.data.heldout),
            "bf16": losses["bf16"],
            "round_to_nearest_int4": losses["round_to_nearest_int4"],
            "qat_int4": losses["end"],
        }
        files.write_json(folder.quantization_report, report)
    load_save.save_quantized(
        quantize_parameters(trainer.all_parameters(), trainer.config.scale_rule),
        as_quantized(trainer.model.args),
        folder.model,
        tokenizer_folder=tokenizer_folder,
        overwrite=True,
    )
