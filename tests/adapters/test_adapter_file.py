"""Adapters as folders: written whole, read back, and refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map

from mobilemoe_mlx.adapters.adapter_file import (
    load_adapters,
    parse_adapter,
    read_adapter,
    save_adapter,
)
from mobilemoe_mlx.adapters.attach import attach, set_dropout_key
from mobilemoe_mlx.adapters.base_digest import base_digest
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.checkpoint.rewrite import convert
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.model import Model

ALL = ("attention", "shared_expert", "experts", "router", "embedding")
TOKENS = mx.array([[5, 17, 200, 3, 77, 450, 8, 9] * 5])


def adapted(base: Path, config: AdapterConfig, seed: int = 0) -> Model:
    """A model with adapters whose update is not zero."""
    model = load_model(base)
    attach(model, config, seed)
    mx.random.seed(seed)
    moved = tree_map(lambda p: p + 0.02 * mx.random.normal(p.shape), model.trainable_parameters())
    model.update(moved)
    return model


def written(base: Path, folder: Path, config: AdapterConfig, seed: int = 0) -> Model:
    model = adapted(base, config, seed)
    layers = len(model.layers)
    save_adapter(folder, model.trainable_parameters(), config, base_digest(base), num_layers=layers)
    return model


@pytest.fixture(params=["bf16", "int4"])
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_is_written_is_read(base: Path, kind: Any, tmp_path: Path):
    config = AdapterConfig(kind=kind, rank=3, alpha=5.0, modules=ALL, layers="1", rslora=True)
    model = written(base, tmp_path / "adapter", config)
    assert read_adapter(tmp_path / "adapter").config == config
    again = load_model(base)
    before = again(TOKENS)
    load_adapters(again, [(tmp_path / "adapter", 1.0)])
    assert mx.allclose(again(TOKENS), model(TOKENS), atol=1e-5)
    assert not mx.allclose(before, model(TOKENS), atol=1e-3)


def test_only_the_adapters_are_trained(base: Path):
    model = load_model(base)
    attach(model, AdapterConfig(modules=("q_proj", "experts.down_proj"), layers="0-1"))
    names = {name for name, _ in tree_flatten(model.trainable_parameters())}
    paths = ("self_attn.q_proj", "feed_forward.experts.down_proj")
    assert names == {
        f"model.layers.{n}.{path}.{part}"
        for n in (0, 1)
        for path in paths
        for part in ("lora_a", "lora_b")
    }


def test_stacked_adapters_add_their_updates(base: Path, tmp_path: Path):
    """By the two adapters' own matrices: with one layer adapted, its output is linear in them."""
    config = AdapterConfig(modules=("o_proj",), layers="1")
    for seed, name in enumerate("ab"):
        written(base, tmp_path / name, config, seed)
    x = mx.random.normal((4, 96))

    def output(*adapters: tuple[Path, float]) -> mx.array:
        model = load_model(base)
        load_adapters(model, adapters)
        return model.layers[1].self_attn.o_proj(x)

    plain = load_model(base).layers[1].self_attn.o_proj(x)
    a, b = (output((tmp_path / name, 1.0)) - plain for name in "ab")
    both = output((tmp_path / "a", 0.5), (tmp_path / "b", -2.0))
    assert mx.allclose(both, plain + 0.5 * a - 2.0 * b, atol=1e-5)


def test_a_converted_copy_of_the_base_is_the_same_base(base: Path, tmp_path: Path):
    convert(base, tmp_path / "mlx", to="mlx")
    ours, theirs = base_digest(base), base_digest(tmp_path / "mlx")
    assert (ours.config, ours.weights) == (theirs.config, theirs.weights)


def test_adapters_of_other_bases_are_refused_by_name(
    bf16_folder: Path, int4_folder: Path, tiny_args: ModelArgs, tmp_path: Path
):
    written(bf16_folder, tmp_path / "adapter", AdapterConfig())
    write_random_checkpoint(tmp_path / "sibling", tiny_args, seed=3, quantized=False)
    for folder, what in ((tmp_path / "sibling", "weights"), (int4_folder, "configuration")):
        with pytest.raises(UserError, match=f"belongs to .*bf16, not to {folder}: the {what}"):
            load_adapters(load_model(folder), [(tmp_path / "adapter", 1.0)])


def test_dora_stands_alone(bf16_folder: Path, tmp_path: Path):
    written(bf16_folder, tmp_path / "dora", AdapterConfig(kind="dora"))
    with pytest.raises(UserError, match="goes alone and with weight 1"):
        load_adapters(load_model(bf16_folder), [(tmp_path / "dora", 0.5)])


@pytest.fixture(scope="module")
def good(bf16_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "good"
    written(bf16_folder, folder, AdapterConfig(rank=4))
    return folder


def edit_tensors(change: Callable[[dict[str, mx.array]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = str(folder / "adapters.safetensors")
        tensors = {name: mx.array(array) for name, array in mx.load(path).items()}
        mx.eval(tensors)
        change(tensors)
        mx.save_safetensors(path, tensors)

    return edit


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def set_rank(content: dict[str, Any]) -> None:
    content["mobilemoe"].update(rank=3, alpha=12.0)  # the scale stays
    content["lora_parameters"].update(rank=3)


def truncate(folder: Path) -> None:
    path = folder / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


Q = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda f: (f / "adapters.safetensors").unlink(), "has no adapters.safetensors"),
        (truncate, "truncated"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"),
        (
            edit_config(lambda c: c["mobilemoe"].update(rnak=3)),
            "'rnak'.*did you mean 'rank'",
        ),
        (edit_config(set_rank), "has the rank 4, and .* says 3"),
        (edit_config(lambda c: c["mobilemoe"].update(rank=3)), "rank is 4, .* contradict"),
        (edit_config(lambda c: c["mobilemoe"].update(alpha=3)), "scale is 4.0, .* it is 0.75"),
        (edit_config(lambda c: c["lora_parameters"].update(scale=1)), "scale is 1, .* it is 4"),
        (edit_config(lambda c: c.update(fine_tune_type="dora")), "'dora', and mobilemoe.kind"),
        (edit_config(lambda c: c["mobilemoe"].update(modules=["atention"])), "'attention'"),
        (edit_config(lambda c: c["mobilemoe"].update(layers="1-9")), "tensors are missing"),
        (edit_config(lambda c: c.update(mobilemoe=3)), "mobilemoe must be a table"),
        (edit_tensors(lambda t: t.pop(f"{Q}.lora_b")), f"'{Q}.lora_b' is missing"),
        (
            edit_tensors(lambda t: [t.pop(f"{Q}.{part}") for part in ("lora_a", "lora_b")]),
            f"'{Q}.lora_a' is missing",
        ),
        (edit_tensors(lambda t: t.update({f"{Q}.m": mx.ones((3,))})), "is unexpected in a lora"),
        (edit_tensors(lambda t: t.update({"w.lora_a": mx.ones((3,))})), "no adapter's tensor"),
        (edit_tensors(lambda t: t.update({f"{Q}.lora_a": mx.ones((64, 3))})), "do not fit"),
        (
            edit_tensors(lambda t: t.update({f"{Q}.lora_a": mx.ones((60, 4))})),
            r"q_proj.lora_a has the shape \[60, 4\], and this model needs \[64, 4\]",
        ),
    ],
)
def test_damage_is_one_sentence(
    good: Path,
    bf16_folder: Path,
    damage: Callable[[Path], object],
    message: str,
    tmp_path: Path,
):
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    damage(folder)
    model = load_model(bf16_folder)
    with pytest.raises(UserError, match=message) as caught:
        load_adapters(model, [(folder, 1.0)])
    assert "\n" not in str(caught.value)


def test_mlx_lms_own_settings_may_not_contradict_themselves(good: Path, tmp_path: Path):
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    path = folder / "adapter_config.json"
    for settings, message in (
        ({"rank": 5, "scale": 2.0}, "has the rank 4, and .* says 5"),
        ({"rank": 4, "scale": 2.0, "alpha": 16}, "scale 2, but alpha / rank is 16 / 4"),
    ):
        path.write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": settings}))
        with pytest.raises(UserError, match=message):
            read_adapter(folder)


def test_a_folder_that_is_no_adapter_is_told_by_name(good: Path, bf16_folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(good, run / "adapter")
    with pytest.raises(UserError, match=f"is a fine-tuning run; its adapter is .*{run}/adapter"):
        read_adapter(run)
    with pytest.raises(UserError, match="is a model and no adapter"):
        read_adapter(bf16_folder)
    (run / "adapter").rename(tmp_path / "elsewhere")
    shutil.copytree(bf16_folder, run / "model")
    with pytest.raises(UserError, match=f"use {run}/model as the model"):
        read_adapter(run)


def test_an_adapter_is_written_whole_or_not_at_all(
    good: Path, bf16_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="exists: choose another folder"):
        written(bf16_folder, folder, AdapterConfig())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mobilemoe_mlx.adapters.adapter_file.write_file", full)
    model = adapted(bf16_folder, AdapterConfig())
    with pytest.raises(UserError, match="No space left"):
        save_adapter(
            folder,
            model.trainable_parameters(),
            AdapterConfig(),
            base_digest(bf16_folder),
            num_layers=2,
            overwrite=True,
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_model_is_never_overwritten(bf16_folder: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not an adapter's folder"):
        save_adapter(
            tmp_path, {}, AdapterConfig(), base_digest(bf16_folder), num_layers=2, overwrite=True
        )


def test_folders_and_weights_are_told_apart(tmp_path: Path):
    assert parse_adapter("a/b") == (Path("a/b"), 1.0)
    assert parse_adapter("a/b:0.5") == (Path("a/b"), 0.5)
    assert parse_adapter("a/b:-1e-1") == (Path("a/b"), -0.1)
    (tmp_path / "run:2").mkdir()
    assert parse_adapter(str(tmp_path / "run:2")) == (tmp_path / "run:2", 1.0)
    for text in ("a:half", "a:", "a:nan"):
        with pytest.raises(UserError, match="is not a weight"):
            parse_adapter(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modules": ("expert",)}, "did you mean 'experts'"),
        ({"kind": "dora", "through_int4": True}, "not dora"),
        ({"dropout": 0.1, "through_int4": True}, "dropout must be 0"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        AdapterConfig(**values)


@pytest.mark.parametrize(
    ("layers", "numbers"), [("", (0, 1, 2, 3)), ("1", (1,)), ("3, 0-1", (0, 1, 3)), ("2-3", (2, 3))]
)
def test_ranges_of_layers(layers: str, numbers: tuple[int, ...]):
    assert AdapterConfig(layers=layers).layer_numbers(4) == numbers


@pytest.mark.parametrize("layers", ["x", "3-1", "1,,2", "4", "0-4", "-1"])
def test_layers_that_are_not_there(layers: str):
    with pytest.raises(UserError, match="layers is"):
        AdapterConfig(layers=layers).layer_numbers(4)


def test_dropout_is_the_same_where_a_layer_is_computed_again(bf16_folder: Path):
    """With checkpointing and without: the same masks, so the same gradients."""
    from mobilemoe_mlx.train.loss import loss_sums

    model = adapted(bf16_folder, AdapterConfig(dropout=0.5))
    model.train()
    set_dropout_key(model, mx.random.key(7))

    def gradients(checkpointing: bool) -> dict[str, mx.array]:
        def loss(parameters: Any) -> mx.array:
            model.update(parameters)
            ones = mx.ones(TOKENS.shape)
            return loss_sums(
                model,
                TOKENS,
                TOKENS,
                ones,
                ones.astype(mx.int32),
                activation_checkpointing=checkpointing,
            ).cross_entropy

        return dict(tree_flatten(mx.grad(loss)(model.trainable_parameters())))

    plain, again = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert mx.allclose(gradient, again[name], rtol=1e-3, atol=1e-4), name
