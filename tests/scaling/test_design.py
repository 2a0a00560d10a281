"""Designs against the published sizes, an exhaustive search and their own bounds."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from mobilemoe_mlx.accounting.cost import account, cost
from mobilemoe_mlx.config import PRESETS
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.scaling.design import (
    Bounds,
    Space,
    best_of_each,
    bounds_of,
    design_of,
    find,
)
from mobilemoe_mlx.scaling.devices import Device, read_device
from mobilemoe_mlx.scaling.law import PAPER
from mobilemoe_mlx.scaling.shape import Shape

SIZES = ("S", "M", "L")


@pytest.mark.parametrize("name", SIZES)
def test_the_published_sizes_are_points_of_the_space(name: str) -> None:
    args = PRESETS[name]
    shape = Shape(8, 1, 8, True, args.hidden_size, args.num_hidden_layers)
    assert shape.model_args() == args
    assert cost(shape.architecture(), 64, as_the_paper=True) == account(args, 64)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(1, 1, 1, False, 512, 12),
        Shape(8, 1, 4, False, 512, 12),
        Shape(4, 2, 1, False, 256, 8),
        Shape(4, 2, 4, True, 256, 8),
    ],
)
def test_every_shape_has_a_configuration_of_its_cost(shape: Shape) -> None:
    assert account(shape.model_args(), 64) == cost(shape.architecture(), 64, as_the_paper=True)


def test_splitting_and_sharing_change_neither_size() -> None:
    """Equal active and total parameters, but for the routers and their biases."""
    routing = {}
    for g, shared in itertools.product((1, 2, 4, 8), (False, True)):
        if shared and g < 8:
            continue
        model = Shape(8, 1, g, shared, 768, 20).architecture()
        experts = model.layers[0].experts * (768 + 1) * 20
        costs = cost(model, 64)
        routing[g, shared] = (costs.active_parameters - experts, costs.total_parameters - experts)
    assert len(set(routing.values())) == 1


def test_a_dense_shape_is_a_llama() -> None:
    from mobilemoe_mlx.accounting.families import read_architecture

    llama = read_architecture(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        }
    )
    assert Shape(1, 1, 1, False, 512, 12).architecture() == llama


@pytest.mark.parametrize("name", SIZES)
def test_the_published_sizes_are_near_the_best_within_their_bounds(name: str) -> None:
    bounds = bounds_of(name)
    best = best_of_each(bounds)[0]
    assert best.loss <= design_of(name, bounds).loss <= 1.02 * best.loss


def test_the_papers_conclusion_at_the_bounds_of_s() -> None:
    """E = 8, g = 8 and a shared expert, within the law's grid; S itself, width and depth too."""
    for tokens in (200e9, 300e9):
        best = best_of_each(bounds_of("S"), tokens)[0]
        assert best.shape == Shape(8, 1, 8, True, 768, 20)
        assert best.args == PRESETS["S"]


def test_as_an_exhaustive_search() -> None:
    device = read_device("iphone16pro")
    bounds = Bounds(memory=0.6e9, flops=0.7e9, tokens_per_second=60, device=device, context=2048)
    space = Space(experts=(1, 4, 8), active=(1,), granularities=(8, 16))
    tried = []
    for E, g, hidden, layers in itertools.product(
        (1, 4, 8), (8, 16), range(256, 1600, 256), range(1, 41)
    ):
        if not 32 <= hidden / layers <= 48:
            continue
        shape = Shape(E, 1, 1 if E == 1 else g, E > 1, hidden, layers)
        model, slower = shape.architecture(), 1.5 if shape.g == 16 else 1
        costs = cost(model, 2048)
        memory = costs.int4_bytes + costs.kv_bytes["bfloat16"] / 2
        seconds = device.seconds_per_token(model, 2048, quantized=True) * slower
        if memory <= 0.6e9 and costs.flops_per_token * slower <= 0.7e9 and seconds <= 1 / 60:
            gain = -0.01 if shape.g == 16 else 0
            tried.append((PAPER.loss(costs.active_parameters, 500e9, E) + gain, shape))
    best = best_of_each(bounds, space=space)[0]
    assert (best.loss, best.shape) == min(tried, key=lambda each: each[0])


def test_what_is_found_keeps_the_bounds() -> None:
    bounds = Bounds(memory=1e9, flops=1.5e9, context=4096, weights="bf16", runtime_memory=1e8)
    found = find(bounds)
    losses = [found.best.loss, *(each.loss for each in found.runners_up)]
    assert losses == sorted(losses)
    for design in (found.best, *found.runners_up):
        costs = cost(design.shape.architecture(), 4096)
        assert design.total_parameters == costs.total_parameters
        assert design.memory == costs.bf16_bytes + costs.kv_bytes["bfloat16"] / 2 + 1e8 <= 1e9
        assert design.flops <= 1.5e9
    assert found.unresolved == sum(each - losses[0] < PAPER.rmse for each in losses[1:])


def test_prices_are_what_more_room_brings() -> None:
    bounds = Bounds(memory=0.4e9, flops=5e9)
    found = find(bounds)
    more = find(dataclasses.replace(bounds, memory=0.44e9))
    assert found.prices["memory"] == found.best.loss - more.best.loss > 0
    assert found.prices["flops"] == 0  # memory binds
    assert set(find(Bounds()).prices) == {"memory"}


def test_a_shared_expert_is_searched() -> None:
    """Of shapes that are alike but for it, the one that has it; without, where it is ruled out."""
    tried = [each.shape for each in best_of_each(bounds_of("S"), 300e9)]
    twins = [shape for shape in tried if shape.shared]
    assert twins
    for shape in twins:
        without = [
            i
            for i, other in enumerate(tried)
            if (other.E, other.k, other.g, other.shared) == (shape.E, shape.k, shape.g, False)
        ]
        assert len(without) == 1 and tried.index(shape) < without[0]
    best = best_of_each(bounds_of("S"), 300e9, space=Space(active=(1,), shared=(False,)))[0].shape
    assert not best.shared and best.g == 8
    assert best.model_args().num_experts_per_tok == 8


def test_a_device_on_which_nothing_is_fast_enough() -> None:
    slow = Device("slow", bandwidth=1e-300, attention_flops=1e-300)
    with pytest.raises(UserError, match="No design decodes"):
        find(Bounds(tokens_per_second=1e-9, device=slow))


def test_each_extrapolated_design_is_marked() -> None:
    found = find(bounds_of("M"), 300e9)
    for design in (found.best, *found.runners_up):
        assert design.extrapolated is not (0.3e9 <= design.active_parameters <= 0.9e9)
    assert {design.extrapolated for design in found.runners_up} == {True, False}


def test_extrapolations_are_told() -> None:
    assert any("tokens: 6e+12" in each for each in find(Bounds(), 6e12).warnings)


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        (Bounds(memory=1e7), r"No design fits into 0.01 GB: the smallest \(E=1, .*4.72 times"),
        (Bounds(flops=1e7), "No design takes 1e.07 FLOPs .* 12.9 times as many"),
        (
            Bounds(tokens_per_second=3000, device=read_device("iphone16pro")),
            r"No design decodes 3000 tokens/s on iPhone 16 Pro .* bound is [\d.]+ times as much",
        ),
        (Bounds(memory=1e7, flops=1.3e8), "the smallest of those that meet the compute bound"),
    ],
)
def test_what_nothing_meets_is_told_by_how_much(bounds: Bounds, told: str) -> None:
    with pytest.raises(UserError, match=told):
        find(bounds)


def test_the_nearest_miss_is_a_hit() -> None:
    """With the memory that the message names, something fits."""
    with pytest.raises(UserError) as refused:
        find(Bounds(memory=1e7))
    needed = float(str(refused.value).split("takes ")[1].split(" GB")[0]) * 1e9
    assert math.isfinite(find(Bounds(memory=needed * 1.01)).best.loss)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UserError, match="needs a device"):
        Bounds(tokens_per_second=10)
    with pytest.raises(UserError, match="tiny is not of the paper's design space"):
        design_of("tiny", Bounds(context=512))
    with pytest.raises(UserError, match="tiny is not of the paper's design space"):
        bounds_of("tiny")
    with pytest.raises(UserError, match="None of these shapes can have a shared expert"):
        Space(active=(1,), granularities=(1, 4), experts=(8,), shared=(True,))
    with pytest.raises(UserError, match="intermediate_size is 16; it must be a multiple"):
        Shape(8, 1, 16, False, 64, 2).model_args(PRESETS["tiny"])
    with pytest.raises(UserError, match="8193 tokens: designs take 1 to 8192"):
        find(Bounds(context=8193))
