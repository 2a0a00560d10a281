"""The second reading of config.json: it agrees with the first, and finds what that misreads."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilemoe_mlx.config import PRESETS, ModelArgs, RopeScaling, read_config
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.verify.config_reader import (
    ReferenceConfig,
    check_agreement,
    disagreements,
    read_reference_config,
    reference_config,
)
from mobilemoe_mlx.verify.verify import verify_package

S: dict[str, Any] = PRESETS["S"].to_dict()
LLAMA3: dict[str, Any] = S["rope_scaling"]


def respelt(*removed: str, **changes: Any) -> dict[str, Any]:
    return {n: v for n, v in S.items() if n not in removed} | changes


SPELLINGS = {
    "published": S,
    "rope_parameters": respelt(
        "rope_theta", "rope_scaling", rope_parameters={**LLAMA3, "rope_theta": 12345.0}
    ),
    "theta outside": respelt("rope_scaling", rope_parameters=LLAMA3),
    "legacy type": respelt(
        rope_scaling={("type" if n == "rope_type" else n): v for n, v in LLAMA3.items()}
    ),
    "a layer type": respelt(rope_scaling={"full_attention": {**LLAMA3, "rope_theta": 500000.0}}),
    "plain": respelt("rope_scaling", "rope_theta", rope_parameters={"rope_theta": 1e4}),
    "no head_dim": respelt("head_dim"),
    "nulls": respelt(sliding_window=None, attn_logit_softcapping=None, dtype="bfloat16"),
    "bookkeeping": respelt(output_router_logits=False, initializer_range=0.02, floor_scale=8192),
    "off": respelt(mlp_bias=False, moe_layers=[*range(20)], attention_chunk_size=8192, n_group=1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_both_readings_agree(spelling: str) -> None:
    config = SPELLINGS[spelling]
    check_agreement(config, ModelArgs.from_dict(config))


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(ReferenceConfig)])
def test_a_misread_field_is_found(name: str) -> None:
    args = PRESETS["S"]
    if name == "rope_scaling":
        wrong: list[Any] = [None, RopeScaling(factor=8.0), RopeScaling(rope_type="default")]
    elif isinstance(value := getattr(args, name), bool):
        wrong = [not value]
    else:
        wrong = [value * 2]
    for value in wrong:
        misread = dataclasses.replace(args)
        object.__setattr__(misread, name, value)
        assert [p.split()[0] for p in disagreements(S, misread)] == [name]
        with pytest.raises(UserError, match=rf"is misread: {name} "):
            check_agreement(S, misread)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
        {"rope_parameters": {**LLAMA3, "factor": 8.0}},
        {"rope_scaling": {**LLAMA3, "attention_factor": 1.1}},
        {"rope_scaling": {"sliding_attention": LLAMA3}},
        {"partial_rotary_factor": 0.5},
        {"sliding_window": 16},
        {"attention_chunk_size": 16},
        {"layer_types": ["sliding_attention"] * 20},
        {"no_rope_layers": [0] * 20},
        {"moe_layers": [0]},
        {"final_logit_softcapping": 30.0},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"tie_word_embeddings": False},
        {"hidden_act": "gelu"},
        {"feed_forward_proj": "gated-gelu"},
        {"nonlinearity": "relu"},
        {"glu": "geglu"},
        {"activation_function": "relu"},
        {"scoring_func": "softmax"},
        {"num_experts": 8},
        {"attn_temperature_tuning": True},
        {"interleave_moe_layer_step": 2},
    ],
    ids=str,
)
def test_what_the_reference_does_not_implement_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        reference_config({**S, **changes})


@pytest.mark.parametrize("read", [read_config, read_reference_config])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rope_theta", json.dumps(S)[:-1] + ', "rope_theta": 1e6}'),
        ("NaN", json.dumps(S).replace('"rope_theta": 500000.0', '"rope_theta": NaN')),
        ("factor", json.dumps(S).replace('"factor": 16.0', '"factor": 16.0, "factor": 8.0')),
    ],
)
def test_a_field_without_one_value_is_refused_by_both(
    read: Callable[[Path], Any], name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(S))
    read(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"config\.json .*{name}"):
        read(tmp_path)


def test_verify_does_not_believe_a_misread_configuration(
    int4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that misses the theta inside `rope_parameters`, as ours once did."""
    folder = tmp_path / "new"
    shutil.copytree(int4_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    theta, block = config.pop("rope_theta"), config.pop("rope_scaling")
    config["rope_parameters"] = {**block, "rope_theta": 7 * theta}
    (folder / "config.json").write_text(json.dumps(config))
    read = ModelArgs.from_dict

    def misread(content: dict[str, Any]) -> ModelArgs:
        return dataclasses.replace(read(content), rope_theta=theta)

    monkeypatch.setattr(ModelArgs, "from_dict", misread)
    package = tmp_path / "misread.mlpackage"
    export_coreml(folder, package, ExportOptions(context=64, prefill_block=8))
    with pytest.raises(UserError, match="misread: rope_theta was read as"):
        verify_package(package, folder, cases=(), greedy_tokens=0)
