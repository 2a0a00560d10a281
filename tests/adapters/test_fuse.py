"""Fused checkpoints: what they compute, what INT4 keeps, and what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from test_adapter_file import ALL, TOKENS, adapted, written

from mobilemoe_mlx import int4
from mobilemoe_mlx.adapters.adapter_file import load_adapters, read_adapter, save_adapter
from mobilemoe_mlx.adapters.attach import adapter_layers
from mobilemoe_mlx.adapters.base_digest import base_digest
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.adapters.fuse import fuse
from mobilemoe_mlx.adapters.fused import Target, fused_checkpoint
from mobilemoe_mlx.adapters.load import load_adapted
from mobilemoe_mlx.adapters.survival import survival
from mobilemoe_mlx.checkpoint.check import check, open_checkpoint
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.checkpoint.rewrite import convert
from mobilemoe_mlx.config import SCALE_RULES
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.lora.embedding import LoRAEmbedding
from mobilemoe_mlx.lora.low_rank import float_matrix
from mobilemoe_mlx.lora.router import LoRARouter

NOT_ROUNDED = ("attention", "shared_expert", "experts", "embedding")


def relative(found: mx.array, expected: mx.array) -> float:
    return (mx.abs(found - expected).max() / mx.abs(expected).max()).item()


@pytest.fixture(params=["bf16", "int4"])
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


def stands_for(layer: Any, weight: mx.array) -> mx.array:
    """The matrix that a layer with adapters computes with, by what it makes of unit vectors."""
    if isinstance(layer, LoRAEmbedding):
        return layer(mx.arange(weight.shape[0]))
    if isinstance(layer, LoRARouter):
        return layer(mx.eye(weight.shape[1]), mx.zeros((weight.shape[0],))).logits.T
    if weight.ndim == 2:
        return layer(mx.eye(weight.shape[1])).T
    units = mx.broadcast_to(mx.eye(weight.shape[1]), (len(weight), *[weight.shape[1]] * 2))
    return layer(units, mx.arange(len(weight), dtype=mx.uint32), True)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_bf16_is_exact_to_rounding(base: Path, kind: Any, tmp_path: Path):
    """Every matrix is within a rounding of what the layer with its adapter computes with."""
    config = AdapterConfig(kind=kind, rank=3, modules=ALL)
    model = written(base, tmp_path / "adapter", config)
    done = fuse(base, [(tmp_path / "adapter", 1.0)], tmp_path / "fused", to="bf16")
    assert done.layout is Layout.FLOAT and not check(tmp_path / "fused")
    fused = dict(load_model(tmp_path / "fused").named_modules())
    layers = adapter_layers(model)
    assert len(layers) == 2 * 10 + 1
    for path, layer in layers.items():
        weight = fused[path].weight
        expected = stands_for(layer, weight)
        # bfloat16 has 8 bits; a float32 sum of two terms may be off by its own last bits.
        error = mx.abs(weight - expected) - 2.0**-8 * mx.abs(expected)
        assert error.max().item() < 1e-6, path


def test_what_has_no_adapter_keeps_its_bits(base: Path, tmp_path: Path):
    written(base, tmp_path / "adapter", AdapterConfig(modules=("q_proj",), layers="1"))
    fuse(base, [(tmp_path / "adapter", 1.0)], tmp_path / "fused", force=True)
    before, after = (open_checkpoint(f) for f in (base, tmp_path / "fused"))
    assert before.layout is after.layout and before.tensors.keys() == after.tensors.keys()
    changed = set()
    for name, tensor in before.tensors.items():
        bits = (np.asarray(t.read().view(mx.uint8)) for t in (tensor, after.tensors[name]))
        if not np.array_equal(*bits):
            changed.add(name.rpartition(".")[0])
    assert changed == {"model.layers.1.self_attn.q_proj"}
    assert (tmp_path / "fused" / "tokenizer.json").is_file()


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("modules", [ALL, ("attention", "experts")])
def test_int4_computes_what_training_through_it_computed(
    base: Path, rule: Any, modules: tuple[str, ...], tmp_path: Path
):
    config = AdapterConfig(modules=modules, through_int4=True, scale_rule=rule)
    model = written(base, tmp_path / "adapter", config)
    adapters = [(tmp_path / "adapter", 1.0)]
    done = fuse(base, adapters, tmp_path / "fused")
    assert done.layout is Layout.INT4 and not check(tmp_path / "fused")
    trained = model(TOKENS)
    assert relative(load_model(tmp_path / "fused")(TOKENS), trained) < 1e-3
    assert relative(load_adapted(base, adapters)(TOKENS), trained) < 1e-3
    assert relative(load_model(base)(TOKENS), trained) > 1e-2


def test_stacked_adapters_are_fused_with_their_weights(base: Path, tmp_path: Path):
    for seed, name in enumerate("ab"):
        written(base, tmp_path / name, AdapterConfig(rank=2 + seed, modules=ALL), seed)
    adapters = [(tmp_path / "a", 0.5), (tmp_path / "b", -1.5)]
    model = load_model(base)
    load_adapters(model, adapters)
    fuse(base, adapters, tmp_path / "fused", to="bf16")
    fused = dict(load_model(tmp_path / "fused").named_modules())
    for path, layer in adapter_layers(model).items():
        assert relative(fused[path].weight, stands_for(layer, fused[path].weight)) < 2.0**-8, path


def test_adapters_of_different_scale_rules_do_not_go_together(int4_folder: Path, tmp_path: Path):
    for rule in SCALE_RULES:
        config = AdapterConfig(rank=2, modules=("q_proj",), through_int4=True, scale_rule=rule)
        written(int4_folder, tmp_path / rule, config)
    adapters = [(tmp_path / rule, 1.0) for rule in SCALE_RULES]
    for use in (
        lambda: load_adapted(int4_folder, adapters),
        lambda: fuse(int4_folder, adapters, tmp_path / "fused"),
    ):
        with pytest.raises(UserError, match=r"different kinds of INT4: .*paper scales"):
            use()
    assert not (tmp_path / "fused").exists()


def test_moved_selection_biases_are_stored_loaded_and_fused(base: Path, tmp_path: Path):
    config = AdapterConfig(modules=("router",))
    model = adapted(base, config)
    name = "model.layers.1.feed_forward.expert_bias"
    bias = mx.array([0.5, -0.25, 0.0, 0.125, 1.0, -1.0, 0.0])
    parameters = model.trainable_parameters()
    parameters["model"]["layers"][1]["feed_forward"]["expert_bias"] = bias
    folder = tmp_path / "adapter"
    save_adapter(folder, parameters, config, base_digest(base), num_layers=2)
    again = load_adapted(base, [(folder, 1.0)])
    assert mx.array_equal(again.layers[1].feed_forward.expert_bias, bias)
    fuse(base, [(folder, 1.0)], tmp_path / "fused")
    assert mx.array_equal(open_checkpoint(tmp_path / "fused").tensors[name].read(), bias)


def by_hand(base: mx.array, update: mx.array) -> tuple[float, float]:
    """What survives of an update of an INT4 matrix, and its relative error, in float64."""
    change = np.array(int4.fake_quantize(base + update) - base, np.float64)
    wanted = np.array(update, np.float64)
    square = (wanted * wanted).sum()
    return (change * wanted).sum() / square, np.sqrt(((change - wanted) ** 2).sum() / square)


def test_what_int4_keeps_is_measured(int4_folder: Path, tmp_path: Path):
    config = AdapterConfig(modules=("o_proj",), layers="0")
    model = written(int4_folder, tmp_path / "adapter", config)
    layer = model.layers[0].self_attn.o_proj
    expected = by_hand(float_matrix(layer.linear), (layer.scale * layer.lora_a @ layer.lora_b).T)
    found = survival(
        open_checkpoint(int4_folder), [(read_adapter(tmp_path / "adapter"), 1.0)], "unclipped"
    )
    assert [each.kind for each in found] == ["attention", "all"]
    for each in found:
        assert (each.survives, each.error) == pytest.approx(expected, rel=1e-4)


def small(base: Path, folder: Path, factor: float) -> None:
    """An adapter whose update is a small part of a step of INT4."""
    config = AdapterConfig(modules=NOT_ROUNDED)
    model = adapted(base, config)
    model.update(tree_map(lambda p: p * factor, model.trainable_parameters()))
    parameters = model.trainable_parameters()
    save_adapter(folder, parameters, config, base_digest(base), num_layers=2)


def test_a_fuse_that_loses_the_adapter_is_refused_unless_forced(int4_folder: Path, tmp_path: Path):
    small(int4_folder, tmp_path / "adapter", 0.1)
    adapters = [(tmp_path / "adapter", 1.0)]
    with pytest.raises(UserError, match=r"INT4 would lose the adapter: \d+% .*--to bf16"):
        fuse(int4_folder, adapters, tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
    done = fuse(int4_folder, adapters, tmp_path / "fused", force=True)
    assert done.survival[-1].survives < 0.5 and not check(tmp_path / "fused")


def test_held_out_losses_are_those_of_the_two_models(bf16_folder: Path, tmp_path: Path):
    model = written(bf16_folder, tmp_path / "adapter", AdapterConfig())
    done = fuse(
        bf16_folder,
        [(tmp_path / "adapter", 1.0)],
        tmp_path / "fused",
        to="int4",
        heldout=lambda model: model(TOKENS).sum().item(),
    )
    assert done.heldout_before == pytest.approx(model(TOKENS).sum().item(), rel=1e-4)
    after = load_model(tmp_path / "fused")(TOKENS).sum().item()
    assert done.heldout_after == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize("to", get_args(Target))
def test_a_converted_base_gives_the_same(base: Path, to: Target, tmp_path: Path):
    written(base, tmp_path / "adapter", AdapterConfig())
    convert(base, tmp_path / "mlx", to="mlx")
    adapters = [(read_adapter(tmp_path / "adapter"), 1.0)]
    one, two = (
        fused_checkpoint(open_checkpoint(folder), adapters, to).tensors
        for folder in (base, tmp_path / "mlx")
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert mx.array_equal(tensor.read(), two[name].read(), equal_nan=True), name


@pytest.mark.parametrize(("value", "weight"), [(float("nan"), 1.0), (0.02, 1e300)])
@pytest.mark.parametrize("to", get_args(Target))
def test_what_is_not_finite_is_refused(
    bf16_folder: Path, to: Target, value: float, weight: float, tmp_path: Path
):
    config = AdapterConfig(rank=2, modules=("o_proj",))
    model = adapted(bf16_folder, config)
    parameters = tree_map(lambda p: p.at[0, 0].add(value), model.trainable_parameters())
    digest = base_digest(bf16_folder)
    save_adapter(tmp_path / "adapter", parameters, config, digest, num_layers=2)
    found = [(tmp_path / "adapter", weight)]
    with pytest.raises(UserError, match=r"not finite.*: (lower|its training diverged)"):
        fuse(bf16_folder, found, tmp_path / "fused", to=to, force=True)
    assert not (tmp_path / "fused").exists()
    with pytest.raises(UserError, match="not finite"):
        load_adapted(bf16_folder, found)


def test_the_base_is_not_overwritten(bf16_folder: Path, tmp_path: Path):
    written(bf16_folder, tmp_path / "adapter", AdapterConfig(rank=2, modules=("o_proj",)))
    with pytest.raises(UserError, match="is itself what is read"):
        fuse(bf16_folder, [(tmp_path / "adapter", 1.0)], bf16_folder, overwrite=True)


def test_the_folder_to_write_is_not_one_that_is_read(bf16_folder: Path, tmp_path: Path):
    adapter = tmp_path / "adapter"
    written(bf16_folder, adapter, AdapterConfig(rank=2, modules=("o_proj",)))
    for output, message in (
        (adapter, "the folder to write is missing"),
        (adapter / "fused", r"is inside .*adapter"),
        (bf16_folder / "fused", r"is inside .*, which is read"),
    ):
        before = sorted(tmp_path.rglob("*")), sorted(bf16_folder.rglob("*"))
        with pytest.raises(UserError, match=message):
            fuse(bf16_folder, [(adapter, 1.0)], output)
        assert (sorted(tmp_path.rglob("*")), sorted(bf16_folder.rglob("*"))) == before


def test_a_folder_that_cannot_be_written_is_told_before_the_losses_are_measured(
    bf16_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def measured(_: object) -> float:
        raise AssertionError

    written(bf16_folder, tmp_path / "adapter", AdapterConfig(rank=2, modules=("o_proj",)))
    adapters = [(tmp_path / "adapter", 1.0)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").touch()
    with pytest.raises(UserError, match="is not empty"):
        fuse(bf16_folder, adapters, tmp_path / "mine", heldout=measured)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    for output in ("new", "deep/new"):
        with pytest.raises(UserError, match=f"The folder {tmp_path} may not be written to"):
            fuse(bf16_folder, adapters, tmp_path / output, heldout=measured)
