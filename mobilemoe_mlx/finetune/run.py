"""A fine-tuning run: one stage of training, in one folder, that leaves an adapter or a model."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mobilemoe_mlx import files
from mobilemoe_mlx.adapters.base_digest import BaseDigest, digest_of
from mobilemoe_mlx.adapters.training_record import TrainingRecord
from mobilemoe_mlx.checkpoint import hub
from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.checkpoint.rewrite import check_apart
from mobilemoe_mlx.data.packing import Batch, PackedBatches
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.data import FinetuneData, open_finetune_data
from mobilemoe_mlx.finetune.expert_load import entropy_report, expert_load
from mobilemoe_mlx.finetune.longer_run import Continued, continued, keep_result
from mobilemoe_mlx.finetune.machine_memory import bound_memory, machine_memory
from mobilemoe_mlx.finetune.memory_changes import check_memory
from mobilemoe_mlx.finetune.memory_plan import plan_memory
from mobilemoe_mlx.finetune.method import (
    kept_by_int4,
    load_base,
    prepare,
    what_is_trained,
    write_result,
)
from mobilemoe_mlx.finetune.recipe import FinetuneConfig, load_finetune_recipe
from mobilemoe_mlx.memory import resident_bytes
from mobilemoe_mlx.tokenizer import load_tokenizer
from mobilemoe_mlx.train.bookkeeping import Bookkeeping
from mobilemoe_mlx.train.disk_space import DiskSpace, bytes_in, existing
from mobilemoe_mlx.train.evaluate import heldout_loss
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import FINETUNE
from mobilemoe_mlx.train.run_folder import RunFolder, StageFolder
from mobilemoe_mlx.train.run_lock import RunLock
from mobilemoe_mlx.train.signals import StopSignals
from mobilemoe_mlx.train.stage import run_steps
from mobilemoe_mlx.train.start import with_chat_template
from mobilemoe_mlx.train.step import Trainer, micro_rows


@dataclass(frozen=True)
class FinetuneOptions:
    """What the command line gives besides the base, the data and the folder."""

    method: str | None = None  # None: the base's default, or that of the recipe file
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    resume: bool = False
    seed: int = 0  # of the adapters' first values
    plan: bool = False  # say what memory the run takes, and do no more


def finetune(
    base: str,
    data: str | None,
    run: Path | str,
    options: FinetuneOptions = FinetuneOptions(),
    say: Callable[[str], None] = print,
) -> Path | None:
    """Fine-tune the checkpoint `base` on `data`; returns the adapter's or the model's folder.

    With `options.plan` None, after the data and the memory of a step have been told.
    Everything is looked at before the model is loaded, and the model before anything is written.
    Raises UserError, one sentence, for what cannot be used; Stopped, with everything saved, on a
    signal.
    """
    folder = RunFolder(files.user_path(run))
    if not 0 <= options.seed < 2**64:  # what MLX takes
        raise UserError(
            f"The seed is {options.seed}; it must be a whole number from 0 to 2^64 - 1."
        )
    try:
        with RunLock(folder.path) as lock:
            return _finetune(base, data, folder, lock, options, say)
    except OSError as error:  # a full disk, mostly
        if options.plan or isinstance(error, BrokenPipeError):
            raise  # of standard output
        intact = folder.stage(FINETUNE).has_started
        raise UserError(
            f"{error.filename or folder.path}: {error.strerror or error}."
            + (f" Checkpoints in {folder.path} are intact: go on with --resume." if intact else "")
        ) from error


def _finetune(
    base: str,
    data_path: str | None,
    folder: RunFolder,
    lock: RunLock,
    options: FinetuneOptions,
    say: Callable[[str], None],
) -> Path | None:
    stage = folder.stage(FINETUNE)
    if not options.plan:
        folder.check_free([FINETUNE], options.resume)
        lock.take()
    overrides = list(options.overrides)
    if data_path is not None:
        overrides.append(f"data.path={_as_toml(data_path)}")
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    base_folder = hub.resolve(base)
    if not options.plan:
        check_apart(folder.path, [base_folder])
    checkpoint = open_checkpoint(base_folder)
    checkpoint.args.check_routed_and_shared("Fine-tuning")
    config = load_finetune_recipe(
        options.recipe,
        options.method,
        overrides,
        checkpoint.args,
        on_cpu=on_cpu,
    )
    group = mx.distributed.init()
    if group.size() > 1:
        raise UserError("finetune runs in one process: start it without mlx.launch.")
    rows = micro_rows(config, 1)
    tokenizer = load_tokenizer(base_folder, checkpoint.end_token_ids())
    data = open_finetune_data(
        config.data, tokenizer, config.batch_size, micro_rows=rows, group=group
    )
    say(data.report.text())
    config = config.for_data(data.steps_per_epoch)
    longer = Continued(config) if options.plan else continued(folder, config)
    config = longer.config
    plan = plan_memory(checkpoint.args, config, on_cpu=on_cpu)
    machine = machine_memory()
    resident = resident_bytes()
    say(plan.text(machine, resident) if options.plan else plan.short(machine, resident))
    check_memory(plan, machine, checkpoint.args, config, on_cpu=on_cpu)
    if options.plan:
        return None
    check_finite(checkpoint)
    digest = digest_of(checkpoint, base)
    record = _record(config, digest, checkpoint.args.to_dict(), base_folder, data)
    recorded = record["stages"][FINETUNE]
    folder.check_same(_of_stage(record, longer.comparable(recorded)))
    if stage.is_finished and longer.before is None:
        say(
            f"The run was finished before: {stage.result}. To train it further, ask for a greater "
            "length (--set epochs=..., or steps=...) with --resume."
        )
        return stage.result
    bound_memory(plan.limit, plan.cache)
    model = load_base(base_folder, config)
    chosen = prepare(model, config, options.seed, _sample(data.stage.batches, config))
    recorded["chosen_experts"] = chosen
    folder.check_same(_of_stage(record, longer.comparable(recorded)))
    stage.check_resumable(data.stage.batches)
    mx.random.seed(options.seed)
    trainer = Trainer(model, config, group)
    space = _disk_space(stage, trainer, config)
    space.check(folder.path)
    trained = what_is_trained(trainer, config, chosen)
    say(trained)
    say(f"The run is in {folder.path}: {space.text()}.")
    recorded |= {"longer_since": longer.since} if longer.since is not None else {}
    lock.take(make=True)
    recorded["about"] = {"base": base, "trained": trained, "form": data.stage.format}
    if longer.before is not None:
        say(_about_longer(longer, keep_result(folder)))
    folder.begin(record, None)
    with StopSignals(group) as signals:
        book = Bookkeeping(FINETUNE, config, stage, data.stage, trainer, signals)
        if longer.since == trainer.step:
            book.be_patient_again()
        before = _load_before(trainer, book, data, config)
        with book:
            run_steps(trainer, book, data.stage, group)
            book.restore_best()
            test = _test_loss(trainer, data, config)
            if test is not None:
                book.metrics.write({"step": trainer.step, "test_loss": test})
            summary = book.finish()
    for line in summary.lines():
        say(line)
    if test is not None:
        say(f"  test loss: {test:.4f}")
    say(f"  {entropy_report(before, _entropy(trainer, data, config))}")
    tokenizer_folder = base_folder
    if data.template_note is not None:
        tokenizer_folder = with_chat_template(base_folder, folder.tokenizer)
    training = TrainingRecord(
        method=config.method,
        data=config.data.path,
        form="chat" if data.stage.format == "chat" else "text",
        steps=trainer.step if summary.best_step is None else summary.best_step,
        heldout_before=summary.heldout_before,
        heldout_after=summary.heldout_after,
        test_loss=test,
        survives_int4=kept_by_int4(trainer, config, checkpoint),
    )
    return write_result(trainer, config, stage, digest, tokenizer_folder, training)


def _of_stage(record: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    return {**record, "stages": {FINETUNE: stage}}


def _about_longer(longer: Continued, kept: Path | None) -> str:
    assert longer.before is not None
    text = (
        f"The run goes on from step {longer.since:,} and is made longer: {longer.config.steps:,} "
        f"steps in place of {longer.before['steps']:,}. From here its learning rate is that of the "
        "longer run, so its losses are not those of a run that began with that length."
    )
    return text if kept is None else f"{text} What it left before is now {kept}."


def _record(
    config: FinetuneConfig,
    base: BaseDigest,
    model: dict[str, Any],
    base_folder: Path,
    data: FinetuneData,
) -> dict[str, Any]:
    """The recipe as it is run, with the content of what it names."""
    stage = {**dataclasses.asdict(config), "tokens": config.tokens}
    stage["base_sha256"] = f"{base.config} {base.weights}"
    stage["data"]["files_sha256"] = data.digests
    stage["data"]["heldout_sha256"] = data.stage.heldout.digests
    tokenizer = files.sha256(base_folder / "tokenizer.json")
    return {
        "name": config.method,
        "model": model,
        "tokenizer": {"sha256": tokenizer},
        "stages": {FINETUNE: stage},
    }


def _sample(batches: PackedBatches, config: FinetuneConfig) -> Iterator[Batch]:
    """Batches of the training data's beginning for the choice of experts; leaves it as it was."""
    if config.experts is None:
        return
    start = batches.state_dict()
    wanted = min(config.experts.sample_tokens, config.tokens)
    size = config.batch_size * config.data.context
    for _ in range(max(1, wanted // size)):
        yield next(batches)
    batches.load_state_dict(start)


def _disk_space(stage: StageFolder, trainer: Trainer, config: FinetuneConfig) -> DiskSpace:
    trained = sum(weight.size for _, weight in tree_flatten(trainer.parameters))
    checkpoint = 12 * trained  # float32: the weight and AdamW's two moments
    kept = min(config.keep_checkpoints + 1, config.steps + 1)  # and the best
    result = 4 * trained
    if config.adapter is None:
        result = sum(weight.nbytes for _, weight in tree_flatten(trainer.model.parameters()))
    return DiskSpace(
        checkpoint=checkpoint,
        checkpoints=kept * checkpoint,
        models=result,
        present=bytes_in(stage.checkpoints),
        free=shutil.disk_usage(existing(stage.path)).free,
    )


def _load_before(
    trainer: Trainer, book: Bookkeeping, data: FinetuneData, config: FinetuneConfig
) -> list[float]:
    """The entropy of the base's expert load, by layer; of a resumed run, from its metrics."""
    for row in read_metrics(book.folder.metrics) if trainer.step else []:
        if "base_load_entropy" in row:
            return list(row["base_load_entropy"])
    entropy = _entropy(trainer, data, config)
    if not trainer.step:
        book.metrics.write({"step": 0, "base_load_entropy": entropy})
    return entropy


def _test_loss(trainer: Trainer, data: FinetuneData, config: FinetuneConfig) -> float | None:
    """The loss on test.jsonl, where there is one, of what the run leaves."""
    if not data.test.batches:
        return None
    trainer.model.update(trainer.computed_parameters())
    trainer.model.eval()
    mask = config.data.document_mask
    chunk = config.compute.loss_chunk
    return heldout_loss(trainer.model, data.test.batches, document_mask=mask, chunk=chunk)


def _entropy(trainer: Trainer, data: FinetuneData, config: FinetuneConfig) -> list[float]:
    """The entropy of the expert load on held-out data or, without it, on one training batch."""
    trainer.model.update(trainer.computed_parameters())
    trainer.model.eval()
    batches: Iterable[Batch] = data.stage.heldout.batches
    if not batches:
        start = data.stage.batches.state_dict()
        batches = [next(data.stage.batches)]
        data.stage.batches.load_state_dict(start)
    return expert_load(trainer.model, batches, document_mask=config.data.document_mask).entropy


def _as_toml(text: str) -> str:
    """A string as TOML writes it, so that an override takes no path for a number."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
