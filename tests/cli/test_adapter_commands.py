"""`--adapter` and `fuse` as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from mobilemoe_mlx.adapters.adapter_file import save_adapter
from mobilemoe_mlx.adapters.attach import attach
from mobilemoe_mlx.adapters.base_digest import base_digest
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.cli.main import main

ALL = ("attention", "shared_expert", "experts", "router", "embedding")


def write_adapter(base: Path, folder: Path, config: AdapterConfig, size: float = 0.05) -> Path:
    model = load_model(base)
    attach(model, config)
    mx.random.seed(0)
    parameters = tree_map(
        lambda p: p + size * mx.random.normal(p.shape), model.trainable_parameters()
    )
    save_adapter(folder, parameters, config, base_digest(base), num_layers=len(model.layers))
    return folder


def printed(capsys: pytest.CaptureFixture[str], *command: str | Path) -> str:
    assert main([str(word) for word in command]) == 0, capsys.readouterr()
    return capsys.readouterr().out


def test_generate_with_an_adapter_says_what_the_fused_checkpoint_does(
    bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adapter = write_adapter(bf16_folder, tmp_path / "adapter", AdapterConfig())
    fused = tmp_path / "fused"
    assert "tensors" in printed(capsys, "fuse", bf16_folder, adapter, fused)
    options = ("--prompt", "def indent", "--max-tokens", "8")
    plain = printed(capsys, "generate", bf16_folder, *options)
    adapted = printed(capsys, "generate", bf16_folder, *options, "--adapter", adapter)
    assert printed(capsys, "generate", fused, *options) == adapted != plain
    off = printed(capsys, "generate", bf16_folder, *options, "--adapter", f"{adapter}:0")
    assert off == plain


@pytest.mark.skipif(sys.platform != "linux", reason="the default engine of INT4 on Linux")
@pytest.mark.usefixtures("kernel_is_built")
def test_the_cpu_engine_says_to_fuse(
    int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adapter = write_adapter(int4_folder, tmp_path / "adapter", AdapterConfig(modules=("q_proj",)))
    command = ["generate", str(int4_folder), "--prompt", "x", "--max-tokens", "2"]
    command += ["--adapter", str(adapter)]
    assert main([*command, "--engine", "cpu"]) == 2
    message = capsys.readouterr().err
    assert "takes no adapters" in message and "mobilemoe fuse" in message and "\n" in message
    assert main(command) == 0  # the engine mlx


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("layout", ["bf16", "int4"])
def test_compare_adds_adapters_on_both_sides(
    layout: str,
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    pytest.importorskip("torch")
    base = request.getfixturevalue(f"{layout}_folder")
    adapter = write_adapter(base, tmp_path / "a", AdapterConfig(kind=kind, modules=ALL))
    printed(capsys, "compare", base, "--tokens", "40", "--adapter", adapter)
    if kind == "lora":
        more = ("--adapter", f"{adapter}:-0.5")
        printed(capsys, "compare", base, "--tokens", "40", "--adapter", adapter, *more)


def test_compare_refuses_what_was_trained_through_int4(
    int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch")
    adapter = write_adapter(int4_folder, tmp_path / "a", AdapterConfig(through_int4=True))
    assert main(["compare", str(int4_folder), "--adapter", str(adapter)]) == 2
    assert "fuse it, and compare what comes out" in capsys.readouterr().err


def test_an_export_with_an_adapter_is_verified_with_it_or_against_the_fused_folder(
    int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("coremltools")
    adapter = write_adapter(int4_folder, tmp_path / "a", AdapterConfig(through_int4=True))
    package, fused = tmp_path / "x.mlpackage", tmp_path / "fused"
    options = ("--context", "32", "--adapter", adapter)
    told = printed(capsys, "export", "coreml", int4_folder, package, *options)
    assert f"--adapter {adapter}" in told
    check = ("--case", "short", "--greedy-tokens", "2")
    verify = ("verify", package, "--against", int4_folder, *check)
    printed(capsys, *verify, "--adapter", adapter)
    printed(capsys, "fuse", int4_folder, adapter, fused)
    printed(capsys, "verify", package, "--against", fused, *check)
    assert main([str(word) for word in verify]) == 1  # the base alone is another model


def test_an_export_that_loses_the_adapter_is_refused(
    int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("coremltools")
    small = write_adapter(int4_folder, tmp_path / "a", AdapterConfig(), size=0.002)
    command = ["export", "coreml", str(int4_folder), str(tmp_path / "x.mlpackage")]
    assert main([*command, "--context", "32", "--adapter", str(small)]) == 2
    assert "INT4 would lose the adapter" in capsys.readouterr().err
    assert not (tmp_path / "x.mlpackage").exists()


def test_fuse_measures_on_data(
    int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adapter = write_adapter(int4_folder, tmp_path / "a", AdapterConfig())
    data = tmp_path / "data.jsonl"
    lines = [json.dumps({"text": f"def indent(text, n={n}): return n * text"}) for n in range(40)]
    data.write_text("\n".join(lines) + "\n")
    figures = tmp_path / "figures.json"
    command = ("fuse", int4_folder, adapter, tmp_path / "out", "--data", data, "--force")
    told = printed(capsys, *command, "--json", figures)
    assert "survives INT4" in told and "held-out loss" in told
    content = json.loads(figures.read_text())
    kinds = [each["kind"] for each in content["survival"]]
    assert kinds == ["attention", "experts", "shared_expert", "all"]
    assert content["heldout_before"] > 0 and content["heldout_after"] > 0


def test_info_of_our_adapter(int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = AdapterConfig(rank=5, modules=ALL, through_int4=True, scale_rule="paper")
    adapter = write_adapter(int4_folder, tmp_path / "a", config)
    text = printed(capsys, "info", adapter)
    words = " ".join(text.split())
    for part in ("rank 5", "trained through INT4, with paper scales", "embed_tokens", "0 to 1"):
        assert part in words
    assert base_digest(int4_folder).weights[:16] in text


@pytest.mark.parametrize("to", ["published", "mlx", "transformers"])
def test_an_adapter_alone_is_told_from_a_model(
    bf16_folder: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
):
    adapter = write_adapter(bf16_folder, tmp_path / "adapter", AdapterConfig())
    assert main(["convert", str(adapter), str(tmp_path / "out"), "--to", to]) == 2
    assert "is no model: it is an adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fuse_says_that_bf16_leaves_out_what_was_trained_through(
    bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = AdapterConfig(modules=("q_proj",), through_int4=True)
    adapter = write_adapter(bf16_folder, tmp_path / "through", config)
    plain = write_adapter(bf16_folder, tmp_path / "plain", AdapterConfig(modules=("q_proj",)))
    for each, to, told in (
        (adapter, "bf16", True),
        (adapter, "int4", False),
        (plain, "bf16", False),
    ):
        out = tmp_path / f"{each.name}-{to}"
        said = printed(capsys, "fuse", bf16_folder, each, out, "--to", to)
        assert ("not the model that was trained" in said) is told
