"""Recipes: TOML files read into typed, frozen configs; a misspelt key is an error.

A recipe is one family: `[model]`, `[tokenizer]`, `[common]` (what the stages share) and a table for
each of the four stages under `[stages]`, which overrides `[common]`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from mobilemoe_mlx import end_tokens, files, tables
from mobilemoe_mlx.config import PRESETS, ModelArgs, ScaleRule, preset
from mobilemoe_mlx.data.source_config import OnBadRecord
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.tables import Bounds, Count, CountOrZero, Fraction, NotNegative, Positive
from mobilemoe_mlx.train.overrides import parse_override, set_in_table

STAGES = ("pretrain", "midtrain", "sft", "qat")
FINETUNE = "finetune"  # the one stage of a fine-tuning run, which no recipe of stages has
STAGE_TITLES = {
    "pretrain": "pre-train",
    "midtrain": "mid-train",
    "sft": "SFT",
    "qat": "INT4 QAT",
    FINETUNE: "fine-tuning",
}
_LENGTHS = ("tokens", "epochs")  # of a stage: exactly one is given
_MOST_POSITIONS = 2**31 - 1  # of a step: what an array of MLX has along one axis

Decay = Annotated[float, Bounds(least=0, below=1)]  # how much of a running average is kept


@dataclass(frozen=True)
class DataConfig:
    """What a stage reads."""

    mixture: str  # mixture file
    context: Count  # tokens per row
    document_mask: bool = False  # keep attention within each packed document
    folder: str = ""  # base folder of a mixture's local files; empty: the mixture file's folder
    heldout: tuple[str, ...] = ()  # local files, or a mixture file, to evaluate on; none: do not
    heldout_tokens: Count = 65536
    heldout_stride: Count = 1  # between the first and the last step: every n-th held-out batch only
    seed: CountOrZero = 0
    on_bad_record: OnBadRecord = "error"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decay on matrices only, warm-up, then a cosine or linear decay."""

    peak_lr: Positive
    schedule: Literal["cosine", "linear"] = "cosine"
    warmup_steps: CountOrZero = 0
    final_lr_fraction: Fraction = 0.1  # of peak_lr, at the last step
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.1
    clip_norm: Positive = 1.0  # global gradient norm


@dataclass(frozen=True)
class RoutingConfig:
    """How the experts are kept in balance (paper, training recipe)."""

    bias_update_rate: NotNegative = 1e-3  # each selection bias moves by this a step; 0 holds it
    z_loss: NotNegative = 1e-4  # times the squared log-sum-exp of the router logits
    # Places that an expert has in a row, over its share of the choices; None: as many as choose it.
    capacity_factor: Positive | None = None  # the paper's pre- and mid-training: 1.5


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of activations; master weights: float32
    activation_checkpointing: bool = False  # recompute each layer in the backward pass
    loss_chunk: Count = 2048  # tokens whose logits exist at one time


class LoopData(Protocol):
    """What the training loop asks of a data table."""

    @property
    def document_mask(self) -> bool:
        """Whether attention stays within each packed document."""

    @property
    def heldout_stride(self) -> int:
        """Between the first and the last step only every n-th held-out batch is evaluated."""


@dataclass(frozen=True, kw_only=True)
class LoopTable:
    """What a stage of a recipe and a recipe of fine-tuning both tell the training loop."""

    optimizer: OptimizerConfig
    batch_size: Count  # rows per optimiser step, over all processes
    micro_batch_size: CountOrZero = 0  # rows that a process computes at a time; 0: all of its rows
    scale_rule: ScaleRule = "unclipped"  # of INT4: or "paper", max |value| / 7.5, clamped
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluate_every: CountOrZero = 0  # steps; 0: only before the first and after the last
    checkpoint_every: Count = 500  # steps; and
    checkpoint_every_minutes: NotNegative = 10.0  # the most work a crash may cost; 0: no limit
    keep_checkpoints: Count = 2

    @property
    def rows_at_a_time(self) -> int:
        """Rows that a process computes at a time where it is alone."""
        return min(self.micro_batch_size, self.batch_size) or self.batch_size


class LoopConfig(Protocol):
    """All that the training loop asks of what it is told."""

    @property
    def data(self) -> LoopData: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def routing(self) -> RoutingConfig: ...
    @property
    def compute(self) -> ComputeConfig: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def rows_at_a_time(self) -> int: ...
    @property
    def evaluate_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def checkpoint_every_minutes(self) -> float: ...
    @property
    def keep_checkpoints(self) -> int: ...

    @property
    def steps(self) -> int:
        """Optimiser steps."""

    @property
    def quantize(self) -> bool:
        """Whether the INT4 form of what is trained is computed (QAT)."""

    @property
    def scale_rule(self) -> ScaleRule:
        """How its scales follow from the weights."""

    @property
    def master_type(self) -> str:
        """ "float32" or "bfloat16": of the trained weights; the optimiser's state is float32."""

    @property
    def lora_b_rate(self) -> float:
        """The learning rate of adapters' `lora_b` over that of all else (LoRA+)."""

    @property
    def patience(self) -> int | None:
        """Evaluations without a better held-out loss before training stops (0: it does not), the
        best checkpoint being kept; None: it is not looked for."""


@dataclass(frozen=True, kw_only=True)
class StageConfig(LoopTable):
    """One training stage."""

    data: DataConfig
    tokens: CountOrZero = 0  # positions to train on, over all processes; or
    epochs: NotNegative = 0.0  # passes over the local sources: exactly one of the two is given
    quantize: bool = False  # train the INT4 form (QAT)
    master_type: ClassVar[str] = "float32"
    lora_b_rate: ClassVar[float] = 1.0
    patience: ClassVar[int | None] = None

    def check(self, where: str) -> None:
        """Raise UserError for values that contradict one another; `where` is the stage's name."""
        if bool(self.tokens) == bool(self.epochs):
            raise UserError(
                f"{where} has {'both tokens and' if self.tokens else 'neither tokens nor'} epochs: "
                "give exactly one, above 0."
            )
        if self.batch_size * self.data.context > _MOST_POSITIONS:
            raise UserError(
                f"{where}.batch_size is {self.batch_size:,}, so a step would have "
                f"{self.batch_size:,} x {self.data.context:,} positions: at most "
                f"{_MOST_POSITIONS:,} are read at a time."
            )
        if self.tokens:
            self.check_warmup(where)

    def check_warmup(self, where: str) -> None:
        """Raise UserError when the warm-up is as long as the stage; tokens must be known."""
        warmup = self.optimizer.warmup_steps
        if warmup >= self.steps:
            raise UserError(
                f"{where}.optimizer.warmup_steps ({warmup}) leaves nothing of the stage's "
                f"{self.steps} steps: lower it with `--set {where}.optimizer.warmup_steps="
                f"{self.steps // 10}`, or raise {where}.{'epochs' if self.epochs else 'tokens'}."
            )

    @property
    def steps(self) -> int:
        """Optimiser steps: tokens / (batch_size x context), rounded up."""
        return math.ceil(self.tokens / (self.batch_size * self.data.context))


@dataclass(frozen=True)
class Recipe:
    """A family: one model and its training stages, in order."""

    name: str
    folder: Path  # where the recipe lies; its relative paths start here
    model: ModelArgs
    tokenizer: str  # a folder or a repository id; empty: that of the initial checkpoint
    stages: dict[str, StageConfig]
    overridden: frozenset[str] = frozenset()  # "tokenizer.path", "sft.tokens": given by the user

    def path(self, relative: str) -> Path:
        """A path named in the recipe: relative to the recipe or, failing that, to where we are."""
        path = files.user_path(relative, self.folder)
        beside = files.resolved(self.folder / path)
        return beside if beside.exists() else files.resolved(path)

    def remedy(self, key: str, override: str) -> str:
        """The end of an error about `key`: what to do where it is the recipe's, not the user's."""
        return "" if key in self.overridden else f"\nThat is the recipe's choice: {override}."


def load_recipe(
    path: Path | str, overrides: Iterable[str] = (), stages: Iterable[str] = ()
) -> Recipe:
    """Read a recipe file and apply command-line overrides.

    `overrides`: "KEY=VALUE" with a dotted key: `tokenizer.path=...`, `model.num_hidden_layers=2`,
    `optimizer.peak_lr=1e-4` (every stage) or `sft.optimizer.peak_lr=1e-4` (one stage). VALUE is
    TOML; a bare word is taken as a string. `stages`: those to keep; none: all of the recipe's.
    Raises UserError naming the key and the nearest valid one.
    """
    path = find_recipe(path)
    content = files.read_toml(path)
    try:
        return _recipe(path, content, list(overrides), list(stages))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def find_recipe(name: Path | str) -> Path:
    """A recipe's path: the file `name`, else this package's "S", "S.toml" or "recipes/S.toml"."""
    path = files.user_path(name)
    if path.is_file() or path.parent not in (Path(), Path("recipes")):
        return path
    if (found := recipes_folder() / f"{path.stem}.toml").exists():
        return found
    if path.parent == Path() and not path.suffix and not path.exists():
        raise UserError(
            f"There is no recipe {name}{did_you_mean(str(name), PRESETS)}: give a file, or one of "
            f"{', '.join(PRESETS)}."
        )
    return path


def recipes_folder() -> Path:
    """The folder of this package's own recipes."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"  # of a checkout


def _recipe(path: Path, content: dict[str, Any], overrides: list[str], keep: list[str]) -> Recipe:
    known = ("name", "model", "tokenizer", "common", "stages")
    tables.check_keys(content, known, "the recipe")
    present = content.get("stages", {})
    if not isinstance(present, dict) or not present:
        raise UserError("a recipe needs at least one [stages.NAME] table.")
    tables.check_keys(present, STAGES, "stages")
    for name in ("model", "tokenizer", "common"):
        tables.check_table(content.get(name, {}), name)
    for name, table in present.items():
        tables.check_table(table, f"stages.{name}")
    for name in keep:
        if name not in present:
            raise UserError(
                f"there is no stage '{name}'{did_you_mean(name, present)}; "
                f"it has {', '.join(present)}."
            )
    kept = {
        name: _stage_table(content.get("common", {}), present[name])
        for name in STAGES
        if name in present and (not keep or name in keep)
    }
    shared = {"model": dict(content.get("model", {})), "tokenizer": content.get("tokenizer", {})}
    given: set[str] = set()
    for override in overrides:
        given |= _override(shared, kept, override)
    for name, table in kept.items():
        _drop_other_length(table, {key for key in _LENGTHS if f"{name}.{key}" in given})
    tables.check_keys(shared["tokenizer"], ("path",), "tokenizer")
    tokenizer = shared["tokenizer"].get("path", "")
    if not isinstance(tokenizer, str):
        raise UserError(f"tokenizer.path is {tokenizer!r}; it must be a folder or repository id.")
    return Recipe(
        name=str(content.get("name", path.stem)),
        folder=path.parent,
        model=_model(shared["model"]),
        tokenizer=tokenizer,
        stages={name: _stage(table, name) for name, table in kept.items()},
        overridden=frozenset(given),
    )


def _model(table: dict[str, Any]) -> ModelArgs:
    fields = {f.name for f in dataclasses.fields(ModelArgs)} - {"quantized", "rope_scaling"}
    tables.check_keys(table, fields | {"preset"}, "model")
    if not isinstance(table.get("preset"), str):
        raise UserError(f"model.preset must be one of {', '.join(PRESETS)}.")
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k != "preset"
    }
    if "num_hidden_layers" in values:  # the per-layer lists follow it
        values = {"no_rope_layers": (), "layer_types": (), **values}
    base = preset(table["preset"])
    try:
        if "eos_token_id" in table:
            where = "config.json: eos_token_id"
            values["eos_token_id"] = end_tokens.token_ids(where, table["eos_token_id"])
        return dataclasses.replace(base, **values)
    except UserError as error:
        raise UserError(str(error).replace("config.json: ", "model.")) from None


def _stage(table: dict[str, Any], name: str) -> StageConfig:
    stage = tables.read(StageConfig, table, name)
    stage.check(name)
    return stage


def _stage_table(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A stage's table over what the stages share; its own length replaces theirs."""
    common = dict(common)
    _drop_other_length(common, own.keys() & set(_LENGTHS))
    return _merged(common, own)


def _drop_other_length(table: dict[str, Any], given: set[str]) -> None:
    if len(given) == 1:
        for other in set(_LENGTHS) - given:
            table.pop(other, None)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _override(shared: dict[str, Any], stages: dict[str, dict[str, Any]], override: str) -> set[str]:
    """Apply "KEY=VALUE" to the tables; returns the dotted keys that it set, with their stage."""
    keys, value = parse_override(override)
    if keys[0] in shared:
        targets, keys = {keys[0]: shared[keys[0]]}, keys[1:]
    elif keys[0] in stages:
        targets, keys = {keys[0]: stages[keys[0]]}, keys[1:]
    elif keys[0] in STAGES:
        raise UserError(f"the override '{override}' names a stage that is not being run.")
    else:
        known = [*(f.name for f in dataclasses.fields(StageConfig)), *shared, *STAGES]
        tables.check_keys({keys[0]: value}, known, f"the override '{override}': the recipe")
        targets = dict(stages)
    for target in targets.values():
        set_in_table(target, keys, value, override)
    return {".".join([name, *keys]) for name in targets}
