"""A training run: the stages of a recipe, one after the other, in one folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mobilemoe_mlx import files
from mobilemoe_mlx.checkpoint import hub
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.data.chat import template_difference
from mobilemoe_mlx.data.mixture_config import load_mixture
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.tokenizer import ChatTokenizer, load_tokenizer
from mobilemoe_mlx.train.data import StageData, open_stage
from mobilemoe_mlx.train.disk_space import disk_space
from mobilemoe_mlx.train.processes import check_equal, together
from mobilemoe_mlx.train.recipe import Recipe, StageConfig
from mobilemoe_mlx.train.run_folder import RunFolder, StageFolder
from mobilemoe_mlx.train.run_lock import RunLock
from mobilemoe_mlx.train.signals import StopSignals
from mobilemoe_mlx.train.stage import run_stage
from mobilemoe_mlx.train.start import (
    checkpoint_digest,
    find_tokenizer,
    finished_parameters,
    model_args,
    starting_parameters,
    with_chat_template,
)
from mobilemoe_mlx.train.step import micro_rows
from mobilemoe_mlx.train.tiny_data import with_tiny_data


def train(
    recipe: Recipe,
    run: Path | str,
    *,
    resume: bool = False,
    init: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Path:
    """Run the recipe's stages in order; returns the last stage's model folder.

    `init`: a checkpoint folder or repository id to start from (else random weights, or the stage
    before this recipe's first one if `run` holds it). `resume`: go on in an existing `run`. `say`
    is given what to tell: the disk space, and what each stage read and reached. With `mlx.launch`,
    every process calls this; rank 0 writes and says. Raises UserError before anything is written
    when the recipe, its data, the tokenizer or the disk cannot carry the run; Stopped on a signal.
    """
    folder = RunFolder(files.user_path(run))
    group = mx.distributed.init()
    if not 0 <= seed < 2**64:  # what MLX takes
        raise UserError(f"The seed is {seed}; it must be a whole number from 0 to 2^64 - 1.")
    try:
        is_writer = group.rank() == 0
        say = say if is_writer else _say_nothing
        with RunLock(folder.path) as lock:
            with together(group):
                folder.check_free(recipe.stages, resume)
                if is_writer:
                    lock.take()
                recipe = with_tiny_data(recipe, folder, init, say, make=is_writer)
            with together(group):
                plan = _prepare(recipe, folder, init, seed, group)
            check_equal(plan.first_step, "The step to go on from", group)
            with together(group):
                if is_writer:
                    lock.take(make=True)
                    folder.begin(plan.record, plan.tokenizer_folder)
            return _run_stages(plan, folder, group, say)
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:  # a full disk, mostly
        intact = any(stage.has_started for stage in folder.stages.values())
        raise UserError(
            f"{error.filename or folder.path}: {error.strerror or error}."
            + (f" Checkpoints in {folder.path} are intact: go on with --resume." if intact else "")
        ) from error


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A run whose every part has been looked at, and of which nothing has been written."""

    recipe: Recipe
    args: ModelArgs
    model: Model  # with the weights that the first unfinished stage starts from
    tokenizer_folder: Path
    has_chat_template: bool
    stages: dict[str, tuple[StageConfig, StageData]]  # those that are not finished
    first_step: int  # of the first of them, which is above 0 where it is resumed
    record: dict[str, Any]  # what recipe.json will hold
    about: list[str]  # what to say before the first step


def _prepare(
    recipe: Recipe,
    folder: RunFolder,
    init: str | None,
    seed: int,
    group: mx.distributed.Group,
) -> _Plan:
    """Look at everything that the run needs; raises UserError for what is missing or wrong."""
    tokenizer_folder = find_tokenizer(recipe, folder, init)
    tokenizer = load_tokenizer(tokenizer_folder)
    args = model_args(recipe, tokenizer, folder, init)
    unfinished = [name for name in recipe.stages if not folder.stage(name).is_finished]
    for name in unfinished:
        micro_rows(recipe.stages[name], group.size())
    stages = {name: open_stage(recipe, name, tokenizer, group) for name in unfinished}
    configs = {**recipe.stages, **{name: config for name, (config, _) in stages.items()}}
    record = _record(dataclasses.replace(recipe, stages=configs), args, tokenizer_folder, init)
    for name, (_, data) in stages.items():
        record["stages"][name]["data"]["heldout_sha256"] = data.heldout.digests
    folder.check_same(record)
    for name, (_, data) in stages.items():
        folder.stage(name).check_resumable(data.batches)
    space = disk_space(folder, {name: configs[name] for name in unfinished}, args)
    space.check(folder.path)
    mx.random.seed(seed)
    model = Model(args)
    if unfinished and not folder.stage(unfinished[0]).has_started:
        earlier = list(recipe.stages)[: list(recipe.stages).index(unfinished[0])]
        if earlier:
            model.update(finished_parameters(folder.stage(earlier[-1]), model))
        elif weights := starting_parameters(recipe, folder, init, model):
            model.update(weights)
    about = [f"{name}: {notice}" for name, (_, data) in stages.items() for notice in data.notices]
    about += [line for name in stages for line in _about_metrics(folder.stage(name))]
    about += _about_chat_template(tokenizer, stages)
    about.append(f"The run is in {folder.path}: {space.text()}.")
    return _Plan(
        recipe=recipe,
        args=args,
        model=model,
        tokenizer_folder=tokenizer_folder,
        has_chat_template=bool(tokenizer.has_chat_template),
        stages=stages,
        first_step=folder.stage(unfinished[0]).step if unfinished else 0,
        record=record,
        about=about if stages else [],
    )


def _about_metrics(stage: StageFolder) -> list[str]:
    """A sentence where the metrics have lost steps of a stage that goes on."""
    if not (lost := stage.unrecorded_steps()):
        return []
    return [
        f"{stage.metrics} has no record of {lost:,} of the {stage.step:,} steps that are trained: "
        "`info` and `plot` will show the others."
    ]


def _about_chat_template(
    tokenizer: ChatTokenizer, stages: Mapping[str, tuple[StageConfig, StageData]]
) -> list[str]:
    """A sentence where conversations are learnt in another format than the template will write."""
    chats = [name for name, (_, data) in stages.items() if data.format == "chat"]
    if not chats or not tokenizer.has_chat_template:
        return []
    difference = template_difference(tokenizer)
    if difference is None:
        return []
    return [
        f"{', '.join(chats)}: the tokenizer's chat template differs from the format of training: "
        f"{difference}. The model keeps the template, so chats will look other than what it "
        "learns; a tokenizer folder without a template (`--set tokenizer.path=FOLDER`) gets that "
        "of the format."
    ]


def _run_stages(
    plan: _Plan, folder: RunFolder, group: mx.distributed.Group, say: Callable[[str], None]
) -> Path:
    """Train the stages that are not finished; returns the last one's model folder."""
    for line in plan.about:
        say(line)
    with StopSignals(group) as signals:
        for name in plan.recipe.stages:
            if name not in plan.stages:
                say(f"{name} was finished before: {folder.stage(name).model}")
                continue
            config, data = plan.stages[name]
            tokenizer_folder = plan.tokenizer_folder
            with together(group):
                if data.format == "chat" and not plan.has_chat_template and group.rank() == 0:
                    target = folder.stage(name).path / "tokenizer"
                    tokenizer_folder = with_chat_template(tokenizer_folder, target)
            summary = run_stage(
                plan.model, name, config, data, folder.stage(name), tokenizer_folder, signals, group
            )
            for line in summary.lines():
                say(line)
            say(f"  model: {folder.stage(name).model}")
    return folder.stage(name).model


def _record(
    recipe: Recipe, args: ModelArgs, tokenizer_folder: Path, init: str | None
) -> dict[str, Any]:
    """The recipe as it is run, with the content of what it names."""
    stages = {name: dataclasses.asdict(stage) for name, stage in recipe.stages.items()}
    for stage in stages.values():
        mixture = load_mixture(recipe.path(stage["data"]["mixture"]))
        stage["data"]["format"] = mixture.format
        stage["data"]["sources"] = {
            source.name: dataclasses.asdict(source) for source in mixture.sources
        }
    if init is not None:
        stages[next(iter(stages))]["init_sha256"] = checkpoint_digest(hub.resolve(init))
    return {
        "name": recipe.name,
        "model": args.to_dict(),
        "tokenizer": {"sha256": files.sha256(tokenizer_folder / "tokenizer.json")},
        "stages": stages,
    }


def _say_nothing(_: str) -> None:
    """For the processes that only help."""
