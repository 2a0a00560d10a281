"""A training run: the stages of a recipe, one after the other, in one folder.

RUN/recipe.json                       the recipe as it was run, overrides applied
RUN/STAGE/metrics.jsonl               a line a step; evaluations; expert load
RUN/STAGE/checkpoints/step-NNNNNNNN/  to resume from
RUN/STAGE/model/                      the finished stage, in the published layout
RUN/qat/quantization.json             held-out loss of BF16, round-to-nearest and QAT
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mobilemoe_mlx import files
from mobilemoe_mlx.checkpoint import hub, load_save
from mobilemoe_mlx.checkpoint.folder import COMPANION_FILES
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.data.mixture import load_mixture
from mobilemoe_mlx.data.packing import PackedBatches
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import (
    as_quantized,
    dequantize_parameters,
    fake_quantize_parameters,
    quantize_parameters,
)
from mobilemoe_mlx.tokenizer import CHAT_TEMPLATE, eos_token_ids, load_tokenizer
from mobilemoe_mlx.train import state
from mobilemoe_mlx.train.balancing import load_statistics
from mobilemoe_mlx.train.data import open_heldout, open_mixture
from mobilemoe_mlx.train.evaluate import heldout_loss
from mobilemoe_mlx.train.metrics import Metrics
from mobilemoe_mlx.train.recipe import STAGES, Recipe, StageConfig
from mobilemoe_mlx.train.step import Trainer

# What may differ between a run and its resumption: nothing that changes the losses.
_FREE_TO_CHANGE = ("evaluate_every", "checkpoint_every", "keep_checkpoints", "micro_batch_size")

# What may differ between the recipe's model and the checkpoint it starts from: nothing that changes
# what the weights compute.
_FREE_IN_INIT = (
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "quantized",
    "torch_dtype",
)

# Steps between two records of the whole expert load (a number a layer and expert) and of the
# sources' tokens and epochs.
_LOAD_EVERY = 10


def train(
    recipe: Recipe,
    run: Path | str,
    *,
    resume: bool = False,
    init: str | None = None,
    seed: int = 0,
) -> Path:
    """Run the recipe's stages in order; returns the last stage's model folder.

    `init`: a checkpoint folder or repository id to start from (else random weights, or the stage
    before this recipe's first one if `run` holds it). `resume`: go on in an existing `run`.
    With `mlx.launch`, every process calls this; rank 0 writes. Raises UserError.
    """
    run = Path(run)
    try:
        return _train(recipe, run, resume, init, seed)
    except OSError as error:  # a full disk, mostly
        raise UserError(
            f"{error.filename or run}: {error.strerror or error}."
            + (f" Checkpoints in {run} are intact: go on with --resume." if run.is_dir() else "")
        ) from error


def _train(recipe: Recipe, run: Path, resume: bool, init: str | None, seed: int) -> Path:
    if seed < 0:
        raise UserError(f"The seed is {seed}; it must not be negative.")
    group = mx.distributed.init()
    tokenizer_folder = _tokenizer_folder(recipe, init)
    tokenizer = load_tokenizer(tokenizer_folder)
    args = _model_args(recipe, tokenizer)
    mx.random.seed(seed)
    model = Model(args)
    _prepare(recipe, tokenizer_folder, run, resume, group)
    if init is not None:
        model.update(_initial_parameters(init, args))
    else:
        _continue_from_earlier_stage(model, recipe, run, args)
    folder = run
    for name, config in recipe.stages.items():
        stage = _Stage(name, config, recipe, run / name, tokenizer, tokenizer_folder, group)
        folder = stage.run(model, resume)
    return folder


class _Stage:
    """One stage of one run."""

    def __init__(
        self,
        name: str,
        config: StageConfig,
        recipe: Recipe,
        folder: Path,
        tokenizer: TokenizerWrapper,
        tokenizer_folder: Path,
        group: mx.distributed.Group,
    ) -> None:
        self.name, self.config, self.folder, self.group = name, config, folder, group
        self.checkpoints = folder / "checkpoints"
        self.is_writer = group.rank() == 0
        self.mixture = open_mixture(recipe, config, tokenizer)
        self.batches = PackedBatches(
            self.mixture,
            config.data.context,
            config.batch_size,
            split_documents=self.mixture.config.format == "text",
            rank=group.rank(),
            world_size=group.size(),
        )
        self.heldout = open_heldout(recipe, config, tokenizer)
        self.tokenizer_folder = tokenizer_folder
        is_chat = self.mixture.config.format == "chat"
        if is_chat and not tokenizer.has_chat_template and self.is_writer:
            self.tokenizer_folder = _with_chat_template(tokenizer_folder, folder / "tokenizer")

    def run(self, model: Model, resume: bool) -> Path:
        """Train `model` through this stage; it holds the result afterwards."""
        trainer = Trainer(model, self.config, self.group)
        last = state.latest(self.checkpoints) if resume else None
        losses: dict[str, float] = {}
        tokens = 0
        if last is not None:
            extra = state.load(last, trainer)
            self.batches.load_state_dict(extra["data"])
            losses, tokens = extra["losses"], extra["tokens"]
        finished = self.folder / "model"
        if trainer.step == self.config.steps and finished.exists():
            model.update(trainer.all_parameters())
            return finished
        path = self.folder / "metrics.jsonl" if self.is_writer else None
        if last is None and path is not None:
            path.unlink(missing_ok=True)
        with Metrics(path, self.name, trainer.step, self.config.steps) as metrics:
            if last is None:
                losses = self._starting_losses(trainer)
                if self.heldout:
                    metrics.write({"step": 0, "heldout_loss": losses["start"]})
                self._save(trainer, losses, tokens)
            while trainer.step < self.config.steps:
                tokens += self._step(trainer, metrics)
                self._between_steps(trainer, metrics, losses, tokens)
        self._finish(trainer, losses)
        return finished

    def _step(self, trainer: Trainer, metrics: Metrics) -> int:
        batch = next(self.batches)
        try:
            result = trainer.run(batch)
        except UserError as error:
            # A checkpoint of this very step holds the weights that failed.
            good = state.latest(self.checkpoints, before=trainer.step)
            raise UserError(
                f"{self.name}: {error}. "
                + (f"The last good checkpoint: {good}." if good else "No good checkpoint is kept.")
            ) from None
        tokens = self.config.batch_size * self.config.data.context
        record: dict[str, Any] = {
            "step": trainer.step,
            "loss": result.loss,
            "z_loss": result.z_loss,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            **load_statistics(result.counts),
        }
        if trainer.step % _LOAD_EVERY == 0 or trainer.step == self.config.steps:
            load = result.counts / mx.maximum(result.counts.sum(axis=-1, keepdims=True), 1)
            record["load"] = [[round(x, 5) for x in layer] for layer in load.tolist()]
            record["sources"] = self.batches.statistics().to_dict()["sources"]
        metrics.step(record, tokens)
        return tokens

    def _between_steps(
        self, trainer: Trainer, metrics: Metrics, losses: dict[str, float], tokens: int
    ) -> None:
        config, step = self.config, trainer.step
        last = step == config.steps
        due = config.evaluate_every and step % config.evaluate_every == 0
        if self.heldout and (due or last):
            loss = self._evaluate(trainer, trainer.computed_parameters())
            metrics.write({"step": step, "heldout_loss": loss})
            if last:
                losses["end"] = loss
        if last or step % config.checkpoint_every == 0:
            self._save(trainer, losses, tokens)
        metrics.restart_clock()

    def _starting_losses(self, trainer: Trainer) -> dict[str, float]:
        """Held-out loss before the first step; in QAT, of BF16 and of plain rounding as well."""
        if not self.heldout:
            return {}
        parameters = trainer.all_parameters()
        if not self.config.quantize:
            return {"start": self._evaluate(trainer, parameters)}
        rounded = tree_map(lambda p: p.astype(mx.bfloat16).astype(mx.float32), parameters)
        nearest = self._evaluate(trainer, fake_quantize_parameters(parameters))
        return {
            "bf16": self._evaluate(trainer, rounded),
            "round_to_nearest_int4": nearest,
            "start": nearest,
        }

    def _evaluate(self, trainer: Trainer, parameters: dict[str, Any]) -> float:
        trainer.model.update(parameters)
        return heldout_loss(
            trainer.model, self.heldout, document_mask=self.config.data.document_mask
        )

    def _save(self, trainer: Trainer, losses: dict[str, float], tokens: int) -> None:
        if not self.is_writer:
            return
        extra = {
            "data": self.batches.state_dict(),
            "data_statistics": self.batches.statistics().to_dict(),
            "losses": losses,
            "tokens": tokens,
        }
        state.save(self.checkpoints, trainer, extra, self.config.keep_checkpoints)

    def _finish(self, trainer: Trainer, losses: dict[str, float]) -> None:
        """Write the stage's model in the published layout, and the QAT comparison."""
        parameters = trainer.all_parameters()
        mx.eval(parameters)
        if not self.is_writer:
            return
        target = self.folder / "model"
        args = trainer.model.args
        if self.config.quantize:
            if self.heldout:  # before the model, whose folder says that the stage is finished
                report = {
                    "heldout": list(self.config.data.heldout),
                    "bf16": losses["bf16"],
                    "round_to_nearest_int4": losses["round_to_nearest_int4"],
                    "qat_int4": losses["end"],
                }
                _write_json(self.folder / "quantization.json", report)
            load_save.save_quantized(
                quantize_parameters(parameters),
                as_quantized(args),
                target,
                tokenizer_folder=self.tokenizer_folder,
                overwrite=True,
            )
        else:
            load_save.save(
                trainer.model, target, tokenizer_folder=self.tokenizer_folder, overwrite=True
            )


def _tokenizer_folder(recipe: Recipe, init: str | None) -> Path:
    if recipe.tokenizer:
        local = recipe.path(recipe.tokenizer)
        return local if local.exists() else hub.resolve(recipe.tokenizer)
    if init is not None:
        return hub.resolve(init)
    raise UserError(
        "The recipe names no tokenizer: give `--set tokenizer.path=FOLDER` (a checkpoint's folder, "
        "or one that `mobilemoe tokenizer train` made), or start from a checkpoint with `--init`."
    )


def _with_chat_template(tokenizer_folder: Path, target: Path) -> Path:
    """A copy of a base model's tokenizer that knows the chat format it is being trained on."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in COMPANION_FILES:
        for file in tokenizer_folder.glob(pattern):
            shutil.copy(file, target / file.name)
    (target / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return target


def _model_args(recipe: Recipe, tokenizer: TokenizerWrapper) -> ModelArgs:
    """The recipe's model with this tokenizer's end tokens; checks context and vocabulary."""
    args = recipe.model
    if len(tokenizer) > args.vocab_size:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} entries but model.vocab_size is "
            f"{args.vocab_size}: set model.vocab_size to at least {len(tokenizer)}."
        )
    for name, stage in recipe.stages.items():
        if stage.data.context > args.max_position_embeddings:
            raise UserError(
                f"{name}.data.context ({stage.data.context}) is beyond the model's "
                f"max_position_embeddings ({args.max_position_embeddings})."
            )
    return dataclasses.replace(
        args,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tuple(eos_token_ids(tokenizer)),
    )


def _initial_parameters(init: str, args: ModelArgs) -> dict[str, Any]:
    """A checkpoint's parameters, float32 (INT4 dequantised exactly), if its shapes fit."""
    model = load_save.load_model(hub.resolve(init), dtype=mx.float32)
    for name in (f.name for f in dataclasses.fields(args) if f.name not in _FREE_IN_INIT):
        ours, theirs = getattr(args, name), getattr(model.args, name)
        if ours != theirs:
            raise UserError(f"{init} has {name} {theirs}, the recipe {ours}: use its own preset.")
    return dequantize_parameters(model) if model.args.quantized else model.parameters()


def _continue_from_earlier_stage(model: Model, recipe: Recipe, run: Path, args: ModelArgs) -> None:
    """Take up the weights of the stage before the recipe's first one, from its last checkpoint or,
    where those were deleted, from its finished model."""
    first = next(iter(recipe.stages))
    if state.latest(run / first / "checkpoints") is not None:
        return  # it has weights of its own
    for name in reversed(STAGES[: STAGES.index(first)]):
        last = state.latest(run / name / "checkpoints")
        finished = run / name / "model"
        if last is not None and not finished.exists():
            raise UserError(
                f"{run / name} is not finished: resume it before {first} "
                f"(`--stage {name} --resume`)."
            )
        if last is not None:
            model.update(state.load_parameters(last))
            return
        if finished.exists():
            model.update(_initial_parameters(str(finished), args))
            return
    if first != STAGES[0]:
        raise UserError(
            f"{first} has no weights to start from: {run} holds no earlier stage. Give a "
            "checkpoint with --init, or run the stages before it."
        )


def _prepare(
    recipe: Recipe, tokenizer_folder: Path, run: Path, resume: bool, group: mx.distributed.Group
) -> None:
    """Check the run folder against the recipe, and record the recipe in it."""
    record = run / "recipe.json"
    stages = {name: dataclasses.asdict(stage) for name, stage in recipe.stages.items()}
    for stage in stages.values():
        mixture = recipe.path(stage["data"]["mixture"])
        load_mixture(mixture)  # what is wrong with it, before anything is written
        stage["data"]["mixture_sha256"] = _sha256(mixture)
    saved: dict[str, Any] = {}
    if record.exists():
        try:
            saved = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{record} is damaged ({error}): start in another folder.") from None
    elif run.exists() and any(
        path != files.temporary_name(record) for path in files.visible(run.iterdir())
    ):
        raise UserError(f"{run} exists and is not a training run: choose another folder.")
    for name, stage in stages.items():
        started = state.latest(run / name / "checkpoints") is not None
        if started and not resume:
            raise UserError(
                f"{run / name} holds a run already: add --resume to go on, or choose another "
                "folder with --run."
            )
        if started and (changed := _changed(saved.get("stages", {}).get(name, {}), stage)):
            raise UserError(
                f"{run / name} was run with another recipe ({', '.join(changed)} differ): resume "
                "with the same values, or start in another folder."
            )
    now = {
        "model": recipe.model.to_dict(),
        "tokenizer": {"sha256": _sha256(tokenizer_folder / "tokenizer.json")},
    }
    for name, value in now.items():
        if saved and (changed := _changed(saved.get(name, {}), value, f"{name}.")):
            raise UserError(
                f"{run} holds a run of another {name} ({', '.join(changed)} differ): choose "
                "another folder with --run."
            )
    # All processes have looked before one writes.
    mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))
    if group.rank() == 0:
        run.mkdir(parents=True, exist_ok=True)
        content = {
            "name": recipe.name,
            **now,
            "stages": {**saved.get("stages", {}), **stages},
        }
        _write_json(record, content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    files.write(path, (json.dumps(content, indent=2) + "\n").encode())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _changed(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the values that differ and matter to the losses."""
    now = json.loads(json.dumps(now))  # tuples as the file holds them
    out: list[str] = []
    for name, value in now.items():
        if isinstance(value, dict):
            out += _changed(saved.get(name, {}), value, f"{prefix}{name}.")
        elif name not in _FREE_TO_CHANGE and saved.get(name) != value:
            out.append(prefix + name)
    return out
