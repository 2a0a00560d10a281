"""Recipes of fine-tuning: one TOML file a method in recipes/finetune/, read into typed configs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.config import ModelArgs, ScaleRule
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.finetune.data_config import FinetuneDataConfig
from mobilemoe_mlx.tables import Bounds, Count, CountOrZero, Fraction, NotNegative, Positive
from mobilemoe_mlx.train.overrides import parse_override, set_in_table
from mobilemoe_mlx.train.recipe import (
    LoopTable,
    OptimizerConfig,
    RoutingConfig,
    recipes_folder,
)

Method = Literal["lora", "dora", "qlora", "qat-lora", "full", "qat", "experts"]
METHODS: tuple[Method, ...] = get_args(Method)
_ADAPTERS = ("lora", "dora", "qlora", "qat-lora")
_OF_FLOAT_BASES = ("lora", "dora", "experts")  # the base is held as BF16
_OF_METHODS = {"adapter": _ADAPTERS, "experts": ("experts",), "weights": ("full",)}  # of no other

_LENGTHS = ("epochs", "steps")  # exactly one is given
_LONGEST_CONTEXT = 2048  # unless one is given: what a 16 GB Mac holds of S (docs/finetuning.md)
_MOST_POSITIONS = 2**24  # of a step: 8,192 rows of the longest context above
_EVALUATIONS = 10  # over a run, where evaluate_every is 0


@dataclass(frozen=True)
class FinetuneOptimizerConfig(OptimizerConfig):
    """The training stages' optimiser, with a warm-up that follows the length of the run."""

    warmup_fraction: Fraction = 0.05  # of the steps, where warmup_steps is 0
    lora_plus_ratio: Positive = 1.0  # the rate of lora_b over that of lora_a (arXiv 2402.12354)


@dataclass(frozen=True)
class FinetuneRoutingConfig(RoutingConfig):
    """What happens to the choice of experts."""

    # Router, selection biases and z-loss: all move as in the training stages, or all stand still.
    train: bool = False


@dataclass(frozen=True)
class ExpertChoice:
    """Which routed experts the method `experts` trains (ESFT, arXiv 2407.01906)."""

    # The experts of a layer that the data uses most, as many as take this share of the use.
    share: Annotated[float, Bounds(above=0, most=1)] = 0.2
    use: Literal["tokens", "weights"] = "tokens"  # counted by tokens, or by their routing weights
    sample_tokens: Count = 131_072  # positions of the training data that are counted (the paper's)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LoopTable):
    """One fine-tuning run. `adapter`: of the methods that train one; `experts`: of that method."""

    method: Method
    data: FinetuneDataConfig
    optimizer: FinetuneOptimizerConfig
    routing: FinetuneRoutingConfig = FinetuneRoutingConfig()
    adapter: AdapterConfig | None = None
    experts: ExpertChoice | None = None
    weights: Literal["float32", "bfloat16"] = "float32"  # of `full`: the masters
    epochs: NotNegative = 0.0  # passes over the data; or
    steps: CountOrZero = 0  # optimiser steps: exactly one of the two is given
    # Evaluations without a better held-out loss before training stops; 0: it does not.
    patience: CountOrZero = 3

    @property
    def quantize(self) -> bool:
        """Whether the INT4 form of all weights is trained."""
        return self.method == "qat"

    @property
    def master_type(self) -> str:
        """The type of the trained weights; of adapters and of QAT always float32."""
        return self.weights

    @property
    def lora_b_rate(self) -> float:
        """LoRA+'s ratio."""
        return self.optimizer.lora_plus_ratio

    @property
    def tokens(self) -> int:
        """Positions in all."""
        return self.steps * self.batch_size * self.data.context

    def for_data(self, steps_per_epoch: float | None) -> FinetuneConfig:
        """The config with its steps counted, for data of which one pass fills so many batches.

        Also the warm-up and `evaluate_every` in steps; where the routing is frozen, its rate and
        z-loss are 0. Raises UserError for a stream without `steps`, and for too long a warm-up.
        """
        steps = self.steps
        if not steps:
            if steps_per_epoch is None:
                raise UserError(
                    "epochs needs data whose length is known, and a stream of the hub has none: "
                    "give `--set steps=N` instead."
                )
            steps = max(1, math.ceil(self.epochs * steps_per_epoch))
        if steps * self.batch_size * self.data.context >= tables.TOO_LARGE:
            name = "steps" if self.steps else "epochs"
            raise UserError(f"{name} is {getattr(self, name):g}; it must be a smaller number.")
        optimizer, routing = self.optimizer, self.routing
        warmup = optimizer.warmup_steps or math.ceil(optimizer.warmup_fraction * steps)
        if warmup >= steps and optimizer.warmup_steps:
            raise UserError(
                f"optimizer.warmup_steps ({warmup}) leaves nothing of the run's {steps} steps: "
                f"lower it with `--set optimizer.warmup_steps={steps // 10}`, or raise epochs."
            )
        if not routing.train:
            routing = dataclasses.replace(routing, bias_update_rate=0.0, z_loss=0.0)
        return dataclasses.replace(
            self,
            steps=steps,
            optimizer=dataclasses.replace(optimizer, warmup_steps=min(warmup, steps - 1)),
            routing=routing,
            evaluate_every=self.evaluate_every or max(1, steps // _EVALUATIONS),
        )


def load_finetune_recipe(
    path: Path | str | None,
    method: str | None,
    overrides: Iterable[str],
    args: ModelArgs,
    *,
    on_cpu: bool,
) -> FinetuneConfig:
    """The recipe file `path`, else that of `method`, else that of the base's default method.

    `args`: of the base model; the default is lora on BF16 and qlora on INT4. `overrides`:
    "KEY=VALUE" with a dotted key; VALUE is TOML, and a bare word a string. What neither says: a
    context of 2,048 or the model's own if it is shorter; float32 activations on the CPU and on
    INT4, else bfloat16. Raises UserError naming the key and the nearest valid one, and for a method
    that does not go with the base.
    """
    default = "qlora" if args.quantized else "lora"
    if method is not None and method not in METHODS:
        raise UserError(
            f"There is no method '{method}'{did_you_mean(method, METHODS)}; known: "
            f"{', '.join(METHODS)}."
        )
    overrides = list(overrides)
    where = str(path)
    if path is None:
        path = recipes_folder() / "finetune" / f"{method or default}.toml"
        where = f"The recipe {path.stem}"  # sound as it is shipped: a mistake is in the overrides
    table = files.read_toml(files.user_path(path))
    try:
        return _read(table, method, overrides, args, on_cpu)
    except UserError as error:
        raise UserError(f"{where}{' with --set' * bool(overrides)}: {error}") from None


def _read(
    table: dict[str, Any], method: str | None, overrides: list[str], args: ModelArgs, on_cpu: bool
) -> FinetuneConfig:
    given = set()
    for override in overrides:
        keys, value = parse_override(override)
        if keys == ["method"]:
            raise UserError(f"the method is not a value to override: write `--method {value}`.")
        set_in_table(table, keys, value, override)
        given.add(keys[0])
    if len(lengths := given & set(_LENGTHS)) == 1:
        for other in set(_LENGTHS) - lengths:
            table.pop(other, None)
    found = tables.read_value(Method, table.get("method"), "method")
    if method is not None and method != found:
        raise UserError(f"it is of the method {found}, and --method says {method}.")
    _check_base(found, args)
    _check_keys(table, found)
    for name in ("data", "compute"):
        tables.check_table(table.setdefault(name, {}), name)
    table["data"].setdefault("context", min(_LONGEST_CONTEXT, args.max_position_embeddings))
    is_float32 = on_cpu or (args.quantized and found in _ADAPTERS)
    table["compute"].setdefault("dtype", "float32" if is_float32 else "bfloat16")
    absent: dict[str, Any] = {}
    if found in _ADAPTERS:
        kind, through = ("dora" if found == "dora" else "lora"), found == "qat-lora"
        own = table.pop("adapter", {})
        if isinstance(own, dict) and type(own.get("layers")) is int:  # --set adapter.layers=5
            own = {**own, "layers": str(own["layers"])}
        rule = tables.read_value(ScaleRule, table.get("scale_rule", "unclipped"), "scale_rule")
        adapter = tables.read(
            AdapterConfig, own, "adapter", kind=kind, through_int4=through, scale_rule=rule
        )
        absent["adapter"] = adapter
    else:
        absent["adapter"] = None
    if found != "experts":
        absent["experts"] = None
    if found != "full":
        absent["weights"] = "float32"
    config = tables.read(FinetuneConfig, table, **absent)
    _check(config, args)
    return config


def _check_keys(table: dict[str, Any], method: Method) -> None:
    """Raise UserError for a key that there is not, or that another method has."""
    for key, methods in _OF_METHODS.items():
        if key in table and method not in methods:
            raise UserError(
                f"'{key}' is a key of --method {' or '.join(methods)}, and the method is {method}: "
                "leave it out, or choose another method."
            )
    fields = [field.name for field in dataclasses.fields(FinetuneConfig)]
    known = [name for name in fields if method in _OF_METHODS.get(name, METHODS)]
    tables.check_fields(FinetuneConfig, table, known)


def _check_base(method: str, args: ModelArgs) -> None:
    if args.quantized and method in _OF_FLOAT_BASES:
        raise UserError(
            f"the method {method} is for BF16 checkpoints, and this one is INT4: use qlora, which "
            "leaves it packed, or qat-lora."
        )
    if not args.quantized and method == "qlora":
        raise UserError(
            "the method qlora is for INT4 checkpoints, and this one is BF16: use lora, or round "
            "it first with `mobilemoe convert --quantize`."
        )


def _check(config: FinetuneConfig, args: ModelArgs) -> None:
    if bool(config.epochs) == bool(config.steps):
        raise UserError(
            f"it has {'both epochs and' if config.steps else 'neither epochs nor'} steps: give "
            "exactly one, above 0."
        )
    if config.data.context > args.max_position_embeddings:
        raise UserError(
            f"data.context ({config.data.context}) is beyond the model's max_position_embeddings "
            f"({args.max_position_embeddings}): shorten it with "
            f"`--set data.context={args.max_position_embeddings}`."
        )
    if config.batch_size * config.data.context > _MOST_POSITIONS:
        raise UserError(
            f"batch_size is {config.batch_size:,}, so a step would have {config.batch_size:,} x "
            f"{config.data.context:,} positions: at most {_MOST_POSITIONS:,} are read at a time, "
            f"{_MOST_POSITIONS // config.data.context:,} rows."
        )
    if args.quantized and config.method in _ADAPTERS and config.compute.dtype != "float32":
        raise UserError(
            "compute.dtype is bfloat16, which cannot hold the scales of an INT4 base: leave it "
            "out, and float32 is used."
        )
    if config.adapter is None and config.optimizer.lora_plus_ratio != 1:
        raise UserError(
            f"optimizer.lora_plus_ratio is for adapters, and {config.method} trains none: leave it "
            "out."
        )
    if config.adapter is not None:
        config.adapter.layer_numbers(args.num_hidden_layers)
        if config.adapter.rank > args.hidden_size:
            raise UserError(
                f"adapter.rank is {config.adapter.rank:,}, above the model's hidden size of "
                f"{args.hidden_size:,}: no matrix has so many ranks. 4 to 64 are usual."
            )
        if config.routing.train and config.adapter.through_int4:
            raise UserError(
                "routing.train is true, but adapters through INT4 leave the selection biases as "
                "they are: train whole weights (--method qat), or leave it out."
            )
        if config.routing.train and "router" not in config.adapter.modules:
            raise UserError(
                "routing.train is true, but no adapter of the router is trained: add 'router' to "
                "adapter.modules, or leave routing.train out."
            )
