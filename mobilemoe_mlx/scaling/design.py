"""Which shape to build: the lowest predicted loss under a memory bound and a compute bound.

The law gives the loss of active parameters, tokens and E / k; `granularity` what g and a shared
expert add.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mobilemoe_mlx.accounting.architecture import Architecture
from mobilemoe_mlx.accounting.cost import cost
from mobilemoe_mlx.config import PRESETS, ModelArgs, preset
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.scaling.devices import Device
from mobilemoe_mlx.scaling.granularity import (
    RELATIVE_TIME,
    WITHOUT_SHARED,
    loss_against_reference,
)
from mobilemoe_mlx.scaling.law import PAPER, Law
from mobilemoe_mlx.scaling.shape import (
    CONTEXT,
    SHARED_UNITS,
    WIDTH_STEP,
    Shape,
    can_share,
    fits_groups,
)

# Training tokens where none are named: the most that the paper's law was fitted on.
DEFAULT_TOKENS = PAPER.fitted_on.tokens[1]
DEFAULT_MEMORY = 5e9  # bytes: the paper's bound

# "Deep and thin": hidden size over layers is about 40 in the paper, 38.4 to 40 in S, M and L. The
# width of this band is ours.
_THINNEST, _THICKEST = 32, 48
_WIDEST = 3072


@dataclass(frozen=True)
class Space:
    """The values that are searched, those of the paper's sweeps by default."""

    experts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # E / k
    active: tuple[int, ...] = (1, 2, 4)  # k
    granularities: tuple[int, ...] = tuple(RELATIVE_TIME)
    shared: tuple[bool, ...] = (True, False)  # with a shared expert, where there can be one

    def __post_init__(self) -> None:
        for name, values in (("E / k", self.experts), ("k", self.active)):
            for value in values:
                if value < 1:
                    raise UserError(f"{name} = {value}: it must be 1 or more.")
        for g in self.granularities:
            if g not in RELATIVE_TIME:
                known = ", ".join(map(str, RELATIVE_TIME))
                raise UserError(f"g = {g}: known of a granularity's price are {known}.")
        if next(self.choices(), None) is None:
            raise UserError(
                "None of these shapes can have a shared expert: it takes the place of "
                f"{SHARED_UNITS} of g times k active experts, and one must be left to select."
            )

    def choices(self) -> Iterator[tuple[int, int, int, bool]]:
        """E, k, g and whether there is a shared expert; a dense model once for each k."""
        for ratio, k in itertools.product(self.experts, self.active):
            if ratio == 1:
                yield k, k, 1, False
                continue
            for g, shared in itertools.product(self.granularities, self.shared):
                if not shared or can_share(k, g):
                    yield ratio * k, k, g, shared


@dataclass(frozen=True)
class Bounds:
    """What a design may cost, and how that is counted."""

    memory: float = DEFAULT_MEMORY  # bytes of weights, cache and `runtime_memory`
    flops: float = math.inf  # per token at `context`
    tokens_per_second: float = 0.0  # decoding on `device` with `context` tokens in the cache
    device: Device | None = None
    context: int = 8192  # tokens
    weights: Literal["int4", "bf16"] = "int4"  # as in the published files, INT4 with its scales
    cache_bits: Literal[8, 16] = 8
    runtime_memory: float = 0.0  # bytes that the runtime takes for itself

    def __post_init__(self) -> None:
        for name in ("memory", "flops"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name):g}; it must be above 0.")
        for name in ("tokens_per_second", "runtime_memory"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name):g}; it must be 0 or more.")
        if not 1 <= self.context <= CONTEXT:
            raise UserError(f"A context of {self.context} tokens: designs take 1 to {CONTEXT}.")
        if self.tokens_per_second and self.device is None:
            raise UserError("A bound in tokens per second needs a device to decode on.")

    def memory_of(self, model: Architecture) -> float:
        """Bytes that `model` takes, counted as these bounds count."""
        costs = cost(model, self.context)
        weights = costs.int4_bytes if self.weights == "int4" else costs.bf16_bytes
        return weights + costs.kv_bytes["bfloat16"] * self.cache_bits / 16 + self.runtime_memory

    def flops_of(self, model: Architecture, g: int) -> float:
        """FLOPs per token, at the price that granularity has."""
        return cost(model, self.context).flops_per_token * RELATIVE_TIME[g]

    def speed_of(self, model: Architecture, g: int) -> float | None:
        """Decoded tokens per second, at the price that granularity has; None without a device."""
        if self.device is None:
            return None
        quantized = self.weights == "int4"
        seconds = self.device.seconds_per_token(model, self.context, quantized=quantized)
        return 1 / (seconds * RELATIVE_TIME[g])


@dataclass(frozen=True)
class Design:
    """A shape with its predicted loss and its cost, counted from its real parameters."""

    shape: Shape
    loss: float  # nats per token
    active_parameters: int
    total_parameters: int
    memory: float  # bytes, as the bounds count them
    flops: float  # per token, as the bounds count them
    tokens_per_second: float | None
    extrapolated: bool  # the law was not fitted there

    @property
    def args(self) -> ModelArgs:
        """The configuration to build."""
        return self.shape.model_args()

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON, the configuration as config.json has it."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**record, "shape": self.shape.to_dict(), "config": self.args.to_dict()}


@dataclass(frozen=True)
class Found:
    """The best design under some bounds, and what stands beside it."""

    best: Design
    runners_up: tuple[Design, ...]  # the best of every other E, k, g, shared, in order of loss
    unresolved: int  # of them, those within the law's own error of the best
    prices: dict[str, float]  # bound -> nats per token that a tenth more of it takes away
    warnings: tuple[str, ...]  # extrapolations

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {
            "best": self.best.to_dict(),
            "runners_up": [each.to_dict() for each in self.runners_up],
            "unresolved": self.unresolved,
            "prices": self.prices,
            "warnings": list(self.warnings),
        }


def find(
    bounds: Bounds, tokens: float = DEFAULT_TOKENS, *, law: Law = PAPER, space: Space | None = None
) -> Found:
    """The design with the lowest loss after `tokens` of training, with the runners-up.

    Raises UserError where nothing meets the bounds, saying by how much the nearest misses them, and
    where a law that is too steep has a finite loss for nothing.
    """
    space = space or Space()
    designs = best_of_each(bounds, tokens, law=law, space=space)
    if not designs:
        raise UserError(_why_nothing(bounds, space))
    best = designs[0]
    if not math.isfinite(best.loss):
        raise UserError("The law gives no design within the bounds a finite loss: it is too steep.")
    near = [each for each in designs[1:] if each.loss - best.loss < law.rmse]
    ratio = best.shape.E / best.shape.k
    return Found(
        best=best,
        runners_up=tuple(designs[1:]),
        unresolved=len(near),
        prices=_prices(bounds, tokens, law, space, best.loss),
        warnings=tuple(law.outside(best.active_parameters, tokens, ratio)),
    )


def best_of_each(
    bounds: Bounds, tokens: float = DEFAULT_TOKENS, *, law: Law = PAPER, space: Space | None = None
) -> list[Design]:
    """For each E, k, g, shared or not, its best width and depth within `bounds`, by loss."""
    designs = []
    for E, k, g, shared in (space or Space()).choices():
        found = [
            _design(shape, bounds, tokens, law)
            for hidden in _widths(g)
            if (shape := _deepest(E, k, g, shared, hidden, bounds)) is not None
        ]
        if found:
            designs.append(min(found, key=lambda design: design.loss))
    return sorted(designs, key=lambda design: design.loss)


def bounds_of(name: str, counted: Bounds | None = None) -> Bounds:
    """The memory and the FLOPs that a preset just meets, counted as `counted` says.

    Raises UserError for a name that is no preset, or one outside the design space.
    """
    counted = counted or Bounds()
    model = _shape_of(name).architecture()
    return dataclasses.replace(
        counted,
        memory=counted.memory_of(model),
        flops=cost(model, counted.context).flops_per_token,
    )


def design_of(
    name: str, bounds: Bounds, tokens: float = DEFAULT_TOKENS, law: Law = PAPER
) -> Design:
    """S, M or L as a design, counted by `bounds`; raises UserError for another name."""
    return _design(_shape_of(name), bounds, tokens, law)


def _shape_of(name: str) -> Shape:
    args = preset(name)
    shape = Shape(8, 1, 8, True, args.hidden_size, args.num_hidden_layers)
    if args.hidden_size % WIDTH_STEP or args != shape.model_args():
        published = ", ".join(n for n in PRESETS if n != "tiny")
        raise UserError(f"{name} is not of the paper's design space; of it are {published}.")
    return shape


def _widths(g: int) -> list[int]:
    return [d for d in range(WIDTH_STEP, _WIDEST + 1, WIDTH_STEP) if fits_groups(d, g)]


def _depths(hidden_size: int) -> range:
    return range(math.ceil(hidden_size / _THICKEST), hidden_size // _THINNEST + 1)


def _deepest(E: int, k: int, g: int, shared: bool, hidden: int, bounds: Bounds) -> Shape | None:
    """The most layers within the bounds: the loss falls with them, and every cost rises."""
    depths = _depths(hidden)
    low, high = -1, len(depths) - 1  # positions: the last known to fit, the last that may
    while low < high:
        middle = (low + high + 1) // 2
        shape = Shape(E, k, g, shared, hidden, depths[middle])
        low, high = (middle, high) if _meets(shape, bounds) else (low, middle - 1)
    return None if low < 0 else Shape(E, k, g, shared, hidden, depths[low])


def _meets(shape: Shape, bounds: Bounds) -> bool:
    model = shape.architecture()
    return (
        bounds.memory_of(model) <= bounds.memory
        and bounds.flops_of(model, shape.g) <= bounds.flops
        and (
            not bounds.tokens_per_second
            or (bounds.speed_of(model, shape.g) or 0) >= bounds.tokens_per_second
        )
    )


def _design(shape: Shape, bounds: Bounds, tokens: float, law: Law) -> Design:
    model = shape.architecture()
    costs = cost(model, bounds.context)
    at = (costs.active_parameters, tokens, shape.E / shape.k)
    loss = law.loss(*at)
    if not shape.is_dense:
        loss += loss_against_reference(shape.g) + (0 if shape.shared else WITHOUT_SHARED)
    return Design(
        shape=shape,
        loss=loss,
        active_parameters=costs.active_parameters,
        total_parameters=costs.total_parameters,
        memory=bounds.memory_of(model),
        flops=bounds.flops_of(model, shape.g),
        tokens_per_second=bounds.speed_of(model, shape.g),
        extrapolated=bool(law.outside(*at)),
    )


def _prices(bounds: Bounds, tokens: float, law: Law, space: Space, loss: float) -> dict[str, float]:
    """What a tenth more of each bound is worth, in nats per token; 0: it does not bind."""
    looser: dict[str, dict[str, Any]] = {"memory": {"memory": bounds.memory * 1.1}}
    if math.isfinite(bounds.flops):
        looser["flops"] = {"flops": bounds.flops * 1.1}
    if bounds.tokens_per_second:
        looser["tokens_per_second"] = {"tokens_per_second": bounds.tokens_per_second / 1.1}
    return {
        name: loss
        - best_of_each(dataclasses.replace(bounds, **change), tokens, law=law, space=space)[0].loss
        for name, change in looser.items()
    }


def _why_nothing(bounds: Bounds, space: Space) -> str:
    """How far the nearest shape is from bounds that none meets."""
    free = Bounds(
        memory=math.inf,
        device=bounds.device,
        context=bounds.context,
        weights=bounds.weights,
        cache_bits=bounds.cache_bits,
        runtime_memory=bounds.runtime_memory,
    )
    smallest = [
        Shape(E, k, g, shared, hidden, _depths(hidden)[0])
        for E, k, g, shared in space.choices()
        for hidden in _widths(g)
    ]
    quick = [s for s in smallest if _meets(s, dataclasses.replace(bounds, memory=math.inf))]
    if quick:
        shape = min(quick, key=lambda s: free.memory_of(s.architecture()))
        needed = free.memory_of(shape.architecture())
        also = "" if len(quick) == len(smallest) else " of those that meet the compute bound"
        return (
            f"No design fits into {bounds.memory / 1e9:.3g} GB: the smallest{also} ({shape}) takes "
            f"{needed / 1e9:.3g} GB, {needed / bounds.memory:.3g} times as much."
        )
    if bounds.tokens_per_second:
        fastest = max(free.speed_of(s.architecture(), s.g) or 0 for s in smallest)
        if fastest < bounds.tokens_per_second:
            name = bounds.device.name if bounds.device else "the device"
            return (
                f"No design decodes {bounds.tokens_per_second:.4g} tokens/s on {name} at a context "
                f"of {bounds.context}: the fastest reaches {fastest:.4g}, and the bound is "
                f"{bounds.tokens_per_second / fastest:.3g} times as much."
            )
    cheapest = min(free.flops_of(s.architecture(), s.g) for s in smallest)
    return (
        f"No design takes {bounds.flops:.3g} FLOPs per token at a context of {bounds.context}: the "
        f"cheapest takes {cheapest:.3g}, {cheapest / bounds.flops:.3g} times as many."
    )
