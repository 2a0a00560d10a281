"""What a run starts from: its tokenizer, its model's settings, its first weights."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mobilemoe_mlx import end_tokens, files
from mobilemoe_mlx.chat_format import CHAT_TEMPLATE
from mobilemoe_mlx.checkpoint import hub, load_save
from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.config import ModelArgs, read_config
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import float_model
from mobilemoe_mlx.tokenizer import eos_token_ids
from mobilemoe_mlx.train import state
from mobilemoe_mlx.train.recipe import STAGES, Recipe
from mobilemoe_mlx.train.run_folder import RunFolder, StageFolder, copy_tokenizer

# What may differ between the recipe's model and the checkpoint it starts from: nothing that changes
# what the weights compute.
_FREE_IN_INIT = (
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "quantized",
    "torch_dtype",
)


def find_tokenizer(recipe: Recipe, run: RunFolder, init: str | None) -> Path:
    """The folder of the run's tokenizer.

    In this order: what the user or the recipe names, if it is a folder; that of the checkpoint
    `init`; that of the run's earlier stages; what the recipe names, on the hub. Raises UserError.
    """
    named = recipe.tokenizer
    if named and (recipe.path(named).is_dir() or "tokenizer.path" in recipe.overridden):
        local = recipe.path(named)
        return local if local.is_dir() else hub.resolve(named)
    if init is not None and ((folder := hub.resolve(init)) / "tokenizer.json").is_file():
        return folder
    kept = [run.tokenizer, *(folder.model for folder in run.stages.values())]
    for folder in kept:
        if (folder / "tokenizer.json").is_file():
            return folder
    if named:
        try:
            return hub.resolve(named)
        except UserError as error:
            raise UserError(
                f"The recipe's tokenizer: {error} Or name another with "
                "`--set tokenizer.path=FOLDER`."
            ) from None
    raise UserError(
        "The recipe names no tokenizer: give `--set tokenizer.path=FOLDER` (a checkpoint's folder, "
        "or one that `mobilemoe tokenizer train` made), or start from a checkpoint with `--init`."
    )


def with_chat_template(tokenizer_folder: Path, target: Path) -> Path:
    """A copy of a base model's tokenizer that knows the chat format it is being trained on."""
    copy_tokenizer(tokenizer_folder, target)
    (target / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return target


def model_args(
    recipe: Recipe, tokenizer: TokenizerWrapper, run: RunFolder, init: str | None
) -> ModelArgs:
    """The recipe's model with its control tokens; checks context and vocabulary.

    Generations end at the tokenizer's end tokens and at those of the checkpoint `init` or of the
    run's earlier stages.
    """
    args = recipe.model
    if len(tokenizer) > args.vocab_size:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} entries but model.vocab_size is "
            f"{args.vocab_size}: set it to at least as many "
            f"(`--set model.vocab_size={len(tokenizer)}`), or name another tokenizer with "
            "`--set tokenizer.path=FOLDER`."
        )
    for name, stage in recipe.stages.items():
        if stage.data.context > args.max_position_embeddings:
            raise UserError(
                f"{name}.data.context ({stage.data.context}) is beyond the model's "
                f"max_position_embeddings ({args.max_position_embeddings}): shorten it with "
                f"`--set {name}.data.context={args.max_position_embeddings}`."
            )
    ends = set(eos_token_ids(tokenizer))
    recorded = run.record().get("model", {}).get("eos_token_id")
    ends.update(end_tokens.token_ids(f"{run.record_file}: eos_token_id", recorded))
    models = [folder.model for folder in run.stages.values() if folder.is_finished]
    for folder in [*models, *([hub.resolve(init)] if init is not None else [])]:
        config = read_config(folder)
        named = end_tokens.token_ids("config.json: eos_token_id", config.get("eos_token_id"))
        ends.update(end_tokens.of_folder(folder, named, args.vocab_size))
    return dataclasses.replace(
        args,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tuple(sorted(end for end in ends if 0 <= end < args.vocab_size)),
    )


def starting_parameters(
    recipe: Recipe, run: RunFolder, init: str | None, model: Model
) -> dict[str, Any] | None:
    """The float32 weights that the recipe's first stage starts from; None: random ones.

    Those of `init`; else of the newest stage before it in `run`. Raises UserError.
    """
    if init is not None:
        return initial_parameters(init, model.args)
    first = next(iter(recipe.stages))
    for name in reversed(STAGES[: STAGES.index(first)]):
        folder = run.stage(name)
        if folder.is_finished:
            return finished_parameters(folder, model)
        if folder.has_started:
            raise UserError(
                f"{folder.path} is not finished: resume it before {first} "
                f"(`--stage {name} --resume`)."
            )
    if first != STAGES[0]:
        raise UserError(
            f"{first} has no weights to start from: {run.path} holds no earlier stage. Give a "
            "checkpoint with --init, or run the stages before it."
        )
    return None


def finished_parameters(folder: StageFolder, model: Model) -> dict[str, Any]:
    """A finished stage's weights, from its last checkpoint or, where those were deleted, from its
    model, which is rounded to bfloat16 or INT4."""
    last = state.latest(folder.checkpoints)
    if last is not None:
        return state.load_parameters(last, model.parameters())
    return initial_parameters(str(folder.model), model.args)


def initial_parameters(init: str, args: ModelArgs) -> dict[str, Any]:
    """A checkpoint's parameters, float32 (INT4 dequantised exactly), if its shapes fit."""
    folder = hub.resolve(init)
    check_finite(open_checkpoint(folder))
    model = load_save.load_model(folder, dtype=mx.float32)
    for name in (f.name for f in dataclasses.fields(args) if f.name not in _FREE_IN_INIT):
        ours, theirs = getattr(args, name), getattr(model.args, name)
        if ours != theirs:
            raise UserError(
                f"{init} has {name} {theirs}, the recipe {ours}: use the recipe of its size"
                + (
                    "."
                    if isinstance(theirs, tuple | dict)
                    else f", or `--set model.{name}={theirs}`."
                )
            )
    return float_model(model).parameters()


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over the weights of a checkpoint, file by file in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(files.visible(folder.glob("*.safetensors"))):
        digest.update(files.sha256(file).encode())
    return digest.hexdigest()
