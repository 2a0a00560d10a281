"""`mobilemoe info` on everything that it can be given; presets and checkpoints: test_accounting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import save_config

from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.model import Model

RECIPES = Path(__file__).parents[2] / "recipes"


def info(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> tuple[Any, str]:
    """What the command says, as JSON and as text."""
    command = ["info", *map(str, arguments)]
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    return record, capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: Path | str) -> str:
    assert main(["info", *map(str, arguments)]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_args: ModelArgs) -> Path:
    """What `mlx_lm.lora` leaves: adapters of the last layer's queries and values."""
    folder = tmp_path_factory.mktemp("adapter")
    model = Model(tiny_args)
    settings = {"rank": 4, "scale": 10.0, "dropout": 0.0}
    settings["keys"] = ["self_attn.q_proj", "self_attn.v_proj"]
    model.freeze()
    linear_to_lora_layers(model, 1, settings)
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {"model": "some/base", "fine_tune_type": "lora", "num_layers": 1}
    save_config({**config, "lora_parameters": settings}, folder / "adapter_config.json")
    return folder


def test_adapter(adapter: Path, tiny_args: ModelArgs, capsys: pytest.CaptureFixture[str]) -> None:
    record, text = info(capsys, adapter)
    assert (record["kind"], record["base"], record["scale"]) == ("lora", "some/base", 10.0)
    assert (record["ranks"], record["layers"]) == ([4], [1])
    assert record["modules"] == {"self_attn.q_proj": 1, "self_attn.v_proj": 1}
    outputs = tiny_args.query_dim + tiny_args.key_value_dim
    assert record["parameters"] == 4 * (2 * tiny_args.hidden_size + outputs)
    assert f"{record['parameters']:,} in 4 tensors" in text
    assert "some/base" in text


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapters.safetensors"])
def test_half_an_adapter(
    adapter: Path, missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half"
    shutil.copytree(adapter, half)
    (half / missing).unlink()
    assert f"is an adapter without {missing}" in refused(capsys, half)


def test_a_truncated_adapter_is_told_with_its_folder(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(adapter, folder)
    weights = folder / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert f"{folder} cannot be used: adapters.safetensors: truncated" in refused(capsys, folder)


@pytest.mark.parametrize("content", ["[]", '{"lora_parameters": 3}', "{"])
def test_damaged_adapter_configuration(
    adapter: Path, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(adapter, folder)
    (folder / "adapter_config.json").write_text(content)
    assert "adapter_config.json is not" in refused(capsys, folder)


@pytest.mark.parametrize("name", ["tiny", "S", "M", "L"])
def test_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record, text = info(capsys, RECIPES / f"{name}.toml")
    assert list(record["stages"]) == ["pretrain", "midtrain", "sft", "qat"]
    assert record["stages"]["qat"]["quantize"]
    assert record["total_parameters"] > record["active_parameters"]
    for stage in record["stages"].values():
        assert f"{stage['steps']:,}" in text


def test_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'format = "text"\n[[sources]]\nname = "notes"\nweight = 3\nfiles = ["*.jsonl"]\n'
        '[[sources]]\nname = "web"\nweight = 1\npath = "someone/pages"\nfield = "body"\n'
    )
    record, text = info(capsys, path)
    assert [source["share"] for source in record["sources"]] == [0.75, 0.25]
    assert (record["sources"][0]["found"], record["sources"][1]["found"]) == (0, None)
    assert "data.folder says where" in text and "someone/pages" in text
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": ""}\n')
    record, text = info(capsys, path)
    notes = record["sources"][0]
    assert (notes["found"], notes["bytes"], notes["records"]) == (2, 30, 3)
    assert notes["left_out"] == {"bad record": 1, "empty": 1}
    assert f"The first bad record: line 1 of {tmp_path / 'a.jsonl'} has no field 'text'" in text
    assert "75.0%" in text and "data.folder" not in text


@pytest.mark.parametrize("path", sorted((RECIPES / "mixtures").iterdir()), ids=lambda p: p.stem)
def test_our_mixtures(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = info(capsys, path)
    assert sum(source["share"] for source in record["sources"]) == pytest.approx(1)


def test_run(quickstart_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = quickstart_home / "runs" / "quickstart"
    record, text = info(capsys, run / "training")
    assert [stage["stage"] for stage in record["stages"]] == ["pretrain", "midtrain", "sft", "qat"]
    assert all(stage["finished"] for stage in record["stages"])
    assert "held-out loss" in text
    assert info(capsys, run)[0] == record  # the quickstart's folder stands for the run in it


def test_damaged_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text("[model\n")
    assert "r.toml is not valid TOML" in refused(capsys, tmp_path / "r.toml")


def test_an_exports_resources_are_its_package(
    quickstart_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = quickstart_home / "runs" / "quickstart"
    package, _ = info(capsys, run / "MobileMoE-tiny.mlpackage")
    assert info(capsys, run / "MobileMoE-tiny-resources")[0] == package
    alone = tmp_path / "MobileMoE-tiny-resources"
    shutil.copytree(run / "MobileMoE-tiny-resources", alone)
    assert "MobileMoE-tiny.mlpackage" in refused(capsys, alone)


def test_what_is_none_of_these(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("Dear")
    for path in (tmp_path, tmp_path / "letter.txt"):
        assert "nothing that can be described" in refused(capsys, path)
    assert "--context is for" in refused(capsys, tmp_path, "--context", "5")
