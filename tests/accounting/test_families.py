"""Other families' costs against transformers' own modules, and refusals that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobilemoe_mlx.accounting.cost import KV_CACHE_TYPES, account, cost
from mobilemoe_mlx.accounting.families import read_architecture
from mobilemoe_mlx.accounting.published import published_models
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.config import PRESETS
from mobilemoe_mlx.errors import UserError

RIVALS = [name for name, model in published_models().items() if model.config]


def transformers_model(config: dict[str, Any], **changes: Any) -> Any:
    """transformers' module of a config, without memory for its weights."""
    import torch
    import transformers

    fields = {**config, **changes}
    family = fields.pop("model_type", "llama")  # MobileLLM-Pro: Llama's tensors
    if family == "gemma3_text":
        fields.pop("sliding_window_pattern", None)
    settings = transformers.AutoConfig.for_model(family, **fields)
    settings._attn_implementation = "eager"
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(settings)


@pytest.mark.parametrize("name", RIVALS)
def test_parameters_are_those_of_transformers(name: str) -> None:
    config = published_models()[name].config
    assert config is not None
    model = transformers_model(config)
    total = sum(parameter.numel() for parameter in model.parameters())  # a tied one counts once
    assert cost(read_architecture(config), 1).total_parameters == total


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "attention_bias": True},
        {"model_type": "olmoe", "hidden_size": 64, "intermediate_size": 32},
        # What the config.json of Gemma 3 4B says of its text model.
        {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
        {"model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 96},
        {"model_type": "qwen3_5_moe_text", "hidden_size": 64},
    ],
    ids=lambda config: config["model_type"],
)
def test_what_a_config_leaves_out_is_as_in_transformers(config: dict[str, Any]) -> None:
    config = {"num_hidden_layers": 5, **config}
    model = transformers_model(config)
    ours = read_architecture(config)
    costs = cost(ours, 1)
    assert costs.total_parameters == sum(each.numel() for each in model.parameters())
    assert ours.max_position_embeddings == model.config.max_position_embeddings
    heads = model.config.num_key_value_heads
    assert ours.key_value_heads == heads
    attends = [layer for layer in ours.layers if layer.query_features]
    head = getattr(model.config, "head_dim", None) or 64 // ours.attention_heads
    assert {each.key_value_features for each in attends} == {heads * head}
    windows = {each.window for each in attends} - {None}
    assert windows <= {getattr(model.config, "sliding_window", None)}


def test_only_the_selected_experts_of_a_mixture_are_active() -> None:
    config = {"model_type": "qwen3_5_moe_text", "hidden_size": 64, "num_hidden_layers": 4}
    all_of_them = cost(read_architecture({**config, "num_experts_per_tok": 256}), 1)
    eight = cost(read_architecture(config), 1)
    assert all_of_them.active_parameters == eight.total_parameters
    idle = 4 * (256 - 8) * 3 * 64 * 512
    assert eight.total_parameters - eight.active_parameters == idle
    assert all_of_them.flops_per_token - eight.flops_per_token == 2 * idle


@pytest.mark.parametrize("name", ["SmolLM2-1.7B", "Gemma-3-270M", "MobileLLM-Pro"])
def test_flops_are_those_that_torch_counts(name: str) -> None:
    """T tokens at once, none masked, are T times the work of one that sees T."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = published_models()[name].config
    assert config is not None
    tokens = 8  # fewer than any window
    model = transformers_model(config)
    # Made here, since what it is made from cannot be looked at without memory.
    mask: Any = torch.zeros((1, 1, tokens, tokens), device="meta")
    if config.get("model_type") == "gemma3_text":
        mask = {"full_attention": mask, "sliding_attention": mask}
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids, attention_mask=mask, use_cache=False)
    rotary = (
        counter.get_total_flops() - tokens * cost(read_architecture(config), tokens).flops_per_token
    )
    # transformers makes its rotary angles by a product of positions and frequencies, which we
    # leave out: two operations for each, once a forward pass and kind of layer.
    assert 0 <= rotary <= 2 * 2 * tokens * 256


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("OLMoE-1B-7B", "6.92"),  # model card: 7B total, 1B active
        ("SmolLM2-1.7B", "1.71"),  # model card: 1.7B
        ("MobileLLM-Pro", "1.08"),  # arXiv 2511.06719: 1.08B
        ("Gemma-3-270M", "0.27"),  # model card: 270M
    ],
)
def test_agrees_with_the_published_sizes(name: str, billions: str) -> None:
    total = cost(published_models()[name].architecture, 1).total_parameters
    assert f"{total / 1e9:.2f}" == billions


def test_windows_and_states_bound_the_cache() -> None:
    gemma = published_models()["Gemma-3-270M"].architecture
    at = {context: cost(gemma, context).kv_bytes["bfloat16"] for context in (512, 513)}
    whole = cost(gemma, 512).kv_bytes_per_token["bfloat16"]
    assert at[512] == 512 * whole
    assert at[513] - at[512] == whole * 3 / 18  # three of the eighteen layers see everything
    qwen = published_models()["Qwen3.5-2B"].architecture
    one, many = cost(qwen, 1), cost(qwen, 1001)
    for kind in KV_CACHE_TYPES:
        grown = many.kv_bytes[kind] - one.kv_bytes[kind]
        assert grown == 1000 * one.kv_bytes_per_token[kind]
    # The state: 16 heads of 128 x 128 and a convolution over 4 tokens, float32, 18 layers.
    state = 18 * 4 * (16 * 128 * 128 + 3 * 16 * 128 * 4)
    assert one.kv_bytes["bfloat16"] == state + one.kv_bytes_per_token["bfloat16"]


def test_our_own_sizes_are_among_them() -> None:
    for name in "SML":
        ours = cost(published_models()[f"MobileMoE-{name}"].architecture, 64, as_the_paper=True)
        assert ours == account(PRESETS[name], 64)


def test_info_of_a_rival(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {**(published_models()["OLMoE-1B-7B"].config or {}), "architectures": ["Olmoe"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    records = []
    for name in ("OLMoE-1B-7B", tmp_path, tmp_path / "config.json"):
        assert main(["info", str(name), "--json", "--context", "1024"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["int4_bytes_paper"] is None
        records.append({key: record[key] for key in ("total_parameters", "kv_bytes")})
    assert records[0] == records[1] == records[2]
    assert main(["info", "Gemma-3-270M"]) == 0
    assert "dense" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; known are mobilemoe, "),
        ({"hidden_size": None}, "the field hidden_size is missing"),
        ({"hidden_size": -1}, "config.json: hidden_size is -1"),
        ({"hidden_size": "wide"}, "config.json: hidden_size is 'wide'"),
        ({"num_attention_heads": 30}, r"hidden_size .2048. is no multiple of num_attention_heads"),
        ({"num_key_value_heads": 5}, r"num_attention_heads .32. is no multiple of num_key_value_h"),
        ({"tie_word_embeddings": 3}, "tie_word_embeddings is 3"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries but num_hidden_layers"),
        ({"layer_types": ["mamba"] * 24}, "layer_types has 'mamba'"),
    ],
)
def test_what_is_wrong_is_told(change: dict[str, Any], told: str) -> None:
    config = {**(published_models()["SmolLM2-1.7B"].config or {}), **change}
    with pytest.raises(UserError, match=told):
        read_architecture(config)


def test_more_experts_than_there_are() -> None:
    config = {**(published_models()["OLMoE-1B-7B"].config or {}), "num_experts_per_tok": 65}
    with pytest.raises(UserError, match=r"num_experts_per_tok .65. is above num_experts .64."):
        read_architecture(config)


def test_a_model_that_also_sees_is_its_text_model() -> None:
    text = published_models()["Qwen3.5-2B"].config or {}
    outer = {"model_type": "qwen3_5", "vision_config": {}, "tie_word_embeddings": True}
    inner = {key: value for key, value in text.items() if key != "tie_word_embeddings"}
    assert read_architecture({**outer, "text_config": inner}) == read_architecture(text)


def test_a_file_that_is_not_there_is_no_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nowhere/config.json"]) == 2
    assert "There is no preset and no folder or file nowhere/config.json" in capsys.readouterr().err
