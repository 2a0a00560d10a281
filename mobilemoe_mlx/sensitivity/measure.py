"""What each layer, each kind of tensor, each tensor and the costliest experts add to the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mobilemoe_mlx import linux_cpu, text_table
from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.config import ModelArgs, ScaleRule
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation.paired import Interval, paired_interval
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.sensitivity.budget import Choice, cheapest
from mobilemoe_mlx.sensitivity.experts import ExpertEstimates, estimate_experts, expert_parts
from mobilemoe_mlx.sensitivity.losses import DocumentLosses, document_losses
from mobilemoe_mlx.sensitivity.parts import Part, Rounding, parts_of


@dataclass(frozen=True)
class Cost:
    """What rounding some tensors adds to the held-out loss, in nats a target."""

    name: str
    bytes_saved: int
    alone: Interval  # they are INT4, all others BF16
    last: Interval  # all others are INT4 already

    @property
    def cost(self) -> float:
        """The mean of both: their share of the whole rounding, to second order."""
        return (self.alone.mean + self.last.mean) / 2


@dataclass(frozen=True)
class ExpertCost:
    """One routed expert, rounded alone and last; the shares are `ExpertEstimates`'."""

    layer: int
    expert: int
    first_order: float
    share: float
    alone: Interval
    last: Interval


@dataclass(frozen=True)
class Suggestion:
    """The best mix of BF16 and INT4 under a budget, and how it was when measured.

    It is chosen by one half of the documents and measured on the other: on those that it was chosen
    by, the tensors that happened to look costly would be flattered. INT4 and BF16 beside it are of
    that other half too.
    """

    budget: int  # bytes
    nbytes: int  # of all tensors
    kept: tuple[str, ...]  # the parts that stay BF16
    predicted: float  # loss of BF16 and the costs of what is rounded, added up
    loss: float
    loss_bf16: float
    loss_int4: float
    measured: Interval  # loss over that of BF16


@dataclass(frozen=True)
class Sensitivity:
    """Everything that was measured; losses in nats a target."""

    documents: int
    targets: int
    loss_bf16: float
    loss_int4: float
    bf16_bytes: int
    int4_bytes: int
    whole: Interval  # of rounding everything
    layers: tuple[Cost, ...]
    kinds: tuple[Cost, ...]
    parts: tuple[Cost, ...]  # empty without a budget
    estimates: ExpertEstimates | None  # of a model with routed experts, where they were asked for
    experts: tuple[ExpertCost, ...]
    suggestions: tuple[Suggestion, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        content = dataclasses.asdict(dataclasses.replace(self, estimates=None))
        if self.estimates is not None:
            content["estimates"] = {
                "first_order": self.estimates.first_order.tolist(),
                "share": self.estimates.share.tolist(),
            }
        return content


class _Measure:
    """Losses of the model with some tensors rounded, against BF16's and INT4's."""

    def __init__(
        self,
        rounding: Rounding,
        batches: Sequence[Batch],
        document_mask: bool,
        done: Callable[[], None],
    ) -> None:
        self.rounding = rounding
        self.parts = parts_of(rounding.model)
        self._data = {"batches": batches, "document_mask": document_mask}
        self._done = done
        self._found: dict[frozenset[Part], DocumentLosses] = {}
        self.bf16 = self.losses(())
        self.int4 = self.losses(self.parts)
        done()

    def losses(self, parts: Iterable[Part]) -> DocumentLosses:
        """With `parts` rounded; what was found before where the same ones are asked for again, as
        of an embedding, which is a layer and a kind of its own."""
        key = frozenset(parts)
        if key not in self._found:
            self._found[key] = self._losses(key)
        return self._found[key]

    def _losses(
        self,
        parts: Iterable[Part],
        chosen: Callable[[Part, mx.array, mx.array], mx.array] | None = None,
    ) -> DocumentLosses:
        with self.rounding.of(parts, chosen):
            return document_losses(self.rounding.model, **self._data)  # type: ignore[arg-type]

    def change(self, base: DocumentLosses, other: DocumentLosses) -> Interval:
        return paired_interval(base.sums, other.sums, weights=base.targets)

    def cost(self, name: str, parts: Sequence[Part]) -> Cost:
        others = [part for part in self.parts if part not in parts]
        cost = Cost(
            name,
            sum(part.bf16_bytes - part.int4_bytes for part in parts),
            self.change(self.bf16, self.losses(parts)),
            self.change(self.losses(others), self.int4),
        )
        self._done()
        return cost

    def cost_by_document(self, part: Part) -> np.ndarray:
        """The mean of both of `cost`'s differences, summed over each document's targets."""
        alone = self.losses([part]).sums - self.bf16.sums
        last = self.int4.sums - self.losses(p for p in self.parts if p != part).sums
        return (alone + last) / 2

    def expert(self, layer: int, expert: int, estimates: ExpertEstimates) -> ExpertCost:
        own = [part for part in expert_parts(self.parts) if part.layer == layer]
        count = self.rounding.model.args.num_local_experts
        it = (mx.arange(count) == expert)[:, None, None]
        alone = self._losses(own, lambda _, bf16, int4: mx.where(it, int4, bf16))
        others = self._losses(
            self.parts,
            lambda part, bf16, int4: mx.where(it, bf16, int4) if part in own else int4,
        )
        self._done()
        return ExpertCost(
            layer,
            expert,
            float(estimates.first_order[layer, expert]),
            float(estimates.share[layer, expert]),
            self.change(self.bf16, alone),
            self.change(others, self.int4),
        )


def sensitivity(
    model: Model,
    batches: Sequence[Batch],
    *,
    document_mask: bool = False,
    experts: int = 0,
    budgets: Sequence[int] = (),
    rule: ScaleRule = "unclipped",
    progress: Callable[[int], Callable[[], None]] = lambda total: lambda: None,
) -> Sensitivity:
    """Measure a float model in float32, which is left frozen.

    `experts`: how many of the costliest to measure by themselves. `budgets`: bytes of all tensors,
    each of which gives a suggestion; then every tensor is measured by itself. `progress`: given the
    number of measurements, returns what is called after each. Raises UserError for a budget that is
    no question: INT4 does not fit, or BF16 does.
    """
    linux_cpu.keep_freed_memory()
    linux_cpu.use_threads_for(model.args.hidden_size)
    model.freeze()
    parts = parts_of(model)
    check_budgets(budgets, model.args)
    size = account(model.args)
    # Norms, selection biases and routers, as an INT4 checkpoint stores them.
    besides = size.int4_bytes - sum(part.int4_bytes for part in parts)
    by_layer = _grouped(parts, lambda part: "embedding" if part.layer is None else part.layer)
    by_kind = _grouped(parts, lambda part: part.kind)
    all_experts = model.args.num_hidden_layers * model.args.num_local_experts
    experts = min(experts, all_experts)
    groups = len(by_layer) + len(by_kind) + experts + (len(parts) if budgets else 0)
    done = progress(1 + groups)
    measure = _Measure(Rounding(model, rule), batches, document_mask, done)
    layers = tuple(
        measure.cost(name if isinstance(name, str) else f"layer {name}", group)
        for name, group in by_layer.items()
    )
    kinds = tuple(measure.cost(name, group) for name, group in by_kind.items())
    estimates: ExpertEstimates | None = None
    measured: tuple[ExpertCost, ...] = ()
    if experts:
        estimates = estimate_experts(measure.rounding, parts, batches, document_mask=document_mask)
        ranked = estimates.ranked()[:experts]
        measured = tuple(measure.expert(*place, estimates) for place in ranked)
    each = {p.parameter: measure.cost(p.name, [p]) for p in parts} if budgets else {}
    suggestions = tuple(_suggestions(measure, sorted(budgets), besides)) if budgets else ()
    return Sensitivity(
        documents=len(measure.bf16.sums),
        targets=int(measure.bf16.targets.sum()),
        loss_bf16=measure.bf16.mean,
        loss_int4=measure.int4.mean,
        bf16_bytes=size.bf16_bytes,
        int4_bytes=size.int4_bytes,
        whole=measure.change(measure.bf16, measure.int4),
        layers=layers,
        kinds=kinds,
        parts=tuple(each.values()),
        estimates=estimates,
        experts=measured,
        suggestions=suggestions,
    )


def check_budgets(budgets: Sequence[int], args: ModelArgs) -> None:
    """Raise UserError for a budget with nothing to choose."""
    size = account(args)
    for budget in budgets:
        if not size.int4_bytes <= budget < size.bf16_bytes:
            small = budget < size.int4_bytes
            what = "even INT4 takes more" if small else "all of it fits in BF16"
            int4, bf16 = text_table.size(size.int4_bytes), text_table.size(size.bf16_bytes)
            raise UserError(
                f"--budget {text_table.size(budget)}: {what}. The tensors of this model take "
                f"{int4} in INT4 and {bf16} in BF16: choose a size between them."
            )


def _suggestions(measure: _Measure, budgets: Sequence[int], besides: int) -> Iterator[Suggestion]:
    """For each budget; `besides`: bytes of what INT4 leaves alone."""
    targets = measure.bf16.targets
    by = np.arange(len(targets)) % 2 == 0
    on = ~by
    costs, predicted = {}, {}
    for part in measure.parts:
        found = measure.cost_by_document(part)
        sure = paired_interval(np.zeros(by.sum()), found[by], weights=targets[by])
        # Bytes are spent on what is sure to cost something, not on noise.
        costs[part.parameter] = 0.0 if sure.has_zero else sure.mean
        predicted[part.parameter] = float(found[on].sum() / targets[on].sum())
    bf16, int4 = measure.bf16.only(on), measure.int4.only(on)
    for budget in budgets:
        choice: Choice | None = cheapest(measure.parts, costs, budget - besides)
        assert choice is not None, "INT4 was found to fit"
        mixed = measure.losses(choice.rounded).only(on)
        yield Suggestion(
            budget=budget,
            nbytes=choice.nbytes + besides,
            kept=tuple(part.name for part in measure.parts if part not in choice.rounded),
            predicted=bf16.mean + sum(predicted[part.parameter] for part in choice.rounded),
            loss=mixed.mean,
            loss_bf16=bf16.mean,
            loss_int4=int4.mean,
            measured=measure.change(bf16, mixed),
        )


def _grouped(parts: Sequence[Part], key: Callable[[Part], Any]) -> dict[Any, list[Part]]:
    groups: dict[Any, list[Part]] = {}
    for part in parts:
        groups.setdefault(key(part), []).append(part)
    return groups
