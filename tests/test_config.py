"""The published config.json is accepted as it is; everything else is refused by name and value."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mobilemoe_mlx.config import INT4_QUANTIZATION, PRESETS, ModelArgs, preset, read_config
from mobilemoe_mlx.errors import UserError

# The S checkpoint's file: model.md's fields, and what transformers adds to every config.json.
PUBLISHED: dict[str, Any] = {
    "architectures": ["MobileMoEForCausalLM"],
    "model_type": "mobilemoe",
    "auto_map": {"AutoModelForCausalLM": "modeling_mobilemoe.MobileMoEForCausalLM"},
    "vocab_size": 128256,
    "hidden_size": 768,
    "intermediate_size": 384,
    "intermediate_size_mlp": 1536,
    "num_hidden_layers": 20,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 16.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
    },
    "num_local_experts": 60,
    "num_experts_per_tok": 4,
    "interleave_moe_layer_step": 1,
    "no_rope_layers": [1] * 20,
    "layer_types": ["full_attention"] * 20,
    "use_qk_norm": True,
    "attn_temperature_tuning": False,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "pad_token_id": 128018,
    "initializer_range": 0.02,
    "use_cache": True,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.0,
    "transformers_version": "4.57.0",
}


def test_published_config_is_preset_s():
    assert ModelArgs.from_dict(PUBLISHED) == PRESETS["S"]


def test_published_qat_config_is_read_as_quantized():
    args = ModelArgs.from_dict({**PUBLISHED, "quantization": INT4_QUANTIZATION})
    assert args.quantized
    assert args.to_dict()["quantization"] == INT4_QUANTIZATION


def test_transformers_5_names_are_read():
    config = {**PUBLISHED, "dtype": "float32"}
    del config["torch_dtype"]
    assert ModelArgs.from_dict(config).torch_dtype == "float32"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_json(name: str):
    args = PRESETS[name]
    assert ModelArgs.from_dict(json.loads(json.dumps(args.to_dict()))) == args


@pytest.mark.parametrize("token", [None, 1, [1], []])
def test_eos_may_be_absent_one_or_a_list(token: Any):
    args = ModelArgs.from_dict({**PUBLISHED, "eos_token_id": token})
    assert args.eos_token_id == (() if token in (None, []) else (1,))


def scaling(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": {**PUBLISHED["rope_scaling"], **changes}}


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"model_type": "llama"}, ["model_type", "'llama'"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"hidden_size": "768"}, ["hidden_size", "'768'"]),
        ({"hidden_size": 768.0}, ["hidden_size", "768.0"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers", "True"]),
        ({"hidden_size": 760}, ["hidden_size", "760", "32"]),
        ({"intermediate_size": 100}, ["intermediate_size", "100", "32"]),
        ({"intermediate_size_mlp": 1000}, ["intermediate_size_mlp", "1000", "32"]),
        ({"num_attention_heads": 10}, ["num_attention_heads (10)", "num_key_value_heads (4)"]),
        ({"head_dim": 63}, ["head_dim", "63"]),
        ({"num_experts_per_tok": 61}, ["num_experts_per_tok (61)", "num_local_experts (60)"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps", "0"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"rope_theta": -1.0}, ["rope_theta", "-1.0"]),
        ({"rope_theta": float("nan")}, ["rope_theta is nan"]),
        ({"rope_theta": 10**400}, ["rope_theta", "smaller"]),
        ({"rms_norm_eps": 10**400}, ["rms_norm_eps", "smaller"]),
        ({"vocab_size": 10**400}, ["vocab_size", "smaller"]),
        (scaling(factor=10**400), ["rope_scaling.factor", "finite"]),
        ({"routed_scaling_factor": 0.0}, ["routed_scaling_factor", "0.0"]),
        ({"norm_topk_prob": 1}, ["norm_topk_prob", "1"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "SwiGLU"]),
        ({"tie_word_embeddings": False}, ["tie_word_embeddings", "False"]),
        ({"attention_bias": True}, ["attention_bias", "True"]),
        ({"attention_dropout": 0.1}, ["attention_dropout", "0.1"]),
        ({"attn_temperature_tuning": True}, ["attn_temperature_tuning", "True"]),
        ({"interleave_moe_layer_step": 2}, ["interleave_moe_layer_step", "2"]),
        ({"no_rope_layers": [1] * 19 + [0]}, ["no_rope_layers[19]", "0"]),
        ({"no_rope_layers": [1] * 19}, ["no_rope_layers", "19", "20"]),
        ({"no_rope_layers": 4}, ["no_rope_layers", "4"]),
        ({"layer_types": ["chunked_attention"] * 20}, ["layer_types[0]", "'chunked_attention'"]),
        (scaling(rope_type="yarn"), ["rope_scaling.rope_type", "'yarn'"]),
        (scaling(factor=0), ["rope_scaling.factor", "0"]),
        (scaling(factor=float("inf")), ["rope_scaling.factor", "inf"]),
        ({"torch_dtype": 5}, ["torch_dtype", "5"]),
        (scaling(factr=1), ["rope_scaling.factr", "did you mean 'factor'"]),
        (scaling(low_freq_factor=2.0), ["high_freq_factor (1.0)", "low_freq_factor (2.0)"]),
        ({"rope_scaling": "llama3"}, ["rope_scaling", "'llama3'"]),
        ({"rope_scaling": {"rope_type": "llama3"}}, ["rope_scaling lacks", "factor"]),
        ({"max_position_embeddings": 10**6}, ["max_position_embeddings (1000000)", "8192 x 16"]),
        ({"eos_token_id": [128256]}, ["eos_token_id", "128256"]),
        ({"eos_token_id": "<|eot|>"}, ["eos_token_id", "'<|eot|>'"]),
        ({"bos_token_id": -1}, ["bos_token_id", "-1"]),
        ({"quantization": {"format": "gptq"}}, ["quantization", "gptq"]),
        (
            {"quantization": {**INT4_QUANTIZATION, "group_size": 64}},
            ["quantization.group_size", "64"],
        ),
        (
            {"quantization": {**INT4_QUANTIZATION, "expert_group_axis": "in"}},
            ["quantization.expert_group_axis", "'in'"],
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_mistake_is_named_with_its_value(changes: dict[str, Any], parts: list[str]):
    with pytest.raises(UserError) as error:
        ModelArgs.from_dict({**PUBLISHED, **changes})
    for part in parts:
        assert part in str(error.value)


def test_a_missing_field_is_named_with_its_likely_misspelling():
    config = {**PUBLISHED, "num_key_value_head": 4}
    del config["num_key_value_heads"]
    with pytest.raises(UserError, match=r"num_key_value_heads is missing.*'num_key_value_head'"):
        ModelArgs.from_dict(config)


@pytest.mark.parametrize(
    "name, misspelt",
    [("norm_topk_prob", "norm_topk_probs"), ("layer_types", "layer_type")],
)
def test_a_misspelt_optional_field_is_not_ignored(name: str, misspelt: str):
    config = {**PUBLISHED, misspelt: PUBLISHED[name]}
    assert ModelArgs.from_dict(config) == PRESETS["S"]  # beside the right one it is of no account
    del config[name]
    with pytest.raises(UserError, match=f"{misspelt} is not a known field.*'{name}'"):
        ModelArgs.from_dict(config)


def test_bookkeeping_fields_are_no_misspellings():
    optional = {"rope_scaling", "no_rope_layers", "layer_types", "bos_token_id", "eos_token_id"}
    optional |= {"hidden_act", "attention_bias", "attention_dropout", "torch_dtype"}
    ModelArgs.from_dict({n: v for n, v in PUBLISHED.items() if n not in optional})


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'tiny'"):
        preset("tinny")


@pytest.mark.parametrize("content", ["{", "[]", b"\xff\xfe"])
def test_a_file_that_is_not_an_object_is_refused(tmp_path: Path, content: str | bytes):
    raw = content.encode() if isinstance(content, str) else content
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no config\.json"):
        read_config(tmp_path)


LLAMA3 = PUBLISHED["rope_scaling"]
THETA = PUBLISHED["rope_theta"]


def respelt(*removed: str, **changes: Any) -> dict[str, Any]:
    return {n: v for n, v in PUBLISHED.items() if n not in removed} | changes


@pytest.mark.parametrize(
    "config",
    [
        respelt("rope_theta", "rope_scaling", rope_parameters={**LLAMA3, "rope_theta": THETA}),
        respelt("rope_scaling", rope_parameters=LLAMA3),
        respelt("rope_scaling", rope_parameters={**LLAMA3, "rope_theta": THETA}),
        respelt("rope_theta", rope_scaling={**LLAMA3, "rope_theta": THETA}),
        respelt(rope_parameters={**LLAMA3, "rope_theta": THETA}),
        respelt(rope_parameters={}),
        respelt(rope_parameters=None),
        respelt(
            "rope_theta",
            rope_scaling=None,
            rope_parameters={"full_attention": {**LLAMA3, "rope_theta": THETA}},
        ),
        respelt(
            rope_scaling=None,
            rope_parameters={"full_attention": LLAMA3, "chunked_attention": LLAMA3},
        ),
        respelt(
            rope_scaling={("type" if n == "rope_type" else n): v for n, v in LLAMA3.items()},
        ),
        respelt(rope_scaling={**LLAMA3, "type": "llama3", "partial_rotary_factor": 1.0}),
        respelt(
            rope_scaling={n: v for n, v in LLAMA3.items() if not n.startswith("original")},
            original_max_position_embeddings=8192,
        ),
        respelt("torch_dtype", dtype="bfloat16"),
        respelt(dtype="torch.bfloat16"),
        respelt("head_dim"),
        respelt(head_dim=None),
        respelt(num_experts=60, scoring_func="sigmoid", moe_layers=[*range(20)], mlp_bias=False),
        respelt(attention_chunk_size=8192, sliding_window=None, final_logit_softcapping=None),
        respelt(sliding_window=512, use_sliding_window=False, query_pre_attn_scalar=64),
        respelt(
            release_date="2026-01-01",
            training_data=["web"],
            Description="small",
            mystery=["gelu is not it", 1],
        ),
        respelt(_name_or_path="x", license="FAIR", floor_scale=8192, attn_scale=0.1, id2label={}),
    ],
    ids=str,
)
def test_every_known_spelling_means_the_same(config: dict[str, Any]):
    assert ModelArgs.from_dict(config) == PRESETS["S"]


def test_a_block_with_the_theta_alone_is_unstretched_rope():
    config = respelt("rope_theta", "rope_scaling", rope_parameters={"rope_theta": 1e4})
    args = ModelArgs.from_dict(config)
    assert args.rope_theta == 1e4
    assert args.rope_scaling is not None and args.rope_scaling.rope_type == "default"


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "factor": 4}}, ["'yarn'"]),
        ({"rope_parameters": {**LLAMA3, "factor": 8.0}}, ["contradicts itself", "'factor': 8.0"]),
        ({"rope_parameters": {"rope_type": "default"}}, ["contradicts itself", "'default'"]),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 1e4}}, ["rope_theta", "10000.0"]),
        (scaling(rope_theta=1e4), ["rope_scaling.rope_theta", "10000.0"]),
        (scaling(type="linear"), ["rope_scaling.type", "'linear'"]),
        (scaling(partial_rotary_factor=0.5), ["partial_rotary_factor"]),
        (scaling(attention_factor=1.2), ["attention_factor"]),
        ({"rope_scaling": {"factor": 4.0}}, ["rope_scaling has factor", "no rope_type"]),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, ["factor"]),
        ({"rope_scaling": {"sliding_attention": LLAMA3}}, ["rope_scaling.sliding_attention"]),
        (
            {"rope_scaling": {"full_attention": LLAMA3, "sliding_attention": {"rope_theta": 1e4}}},
            ["rope_scaling.sliding_attention"],
        ),
        ({"original_max_position_embeddings": 4096}, ["original_max_position_embeddings", "4096"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"rope_local_base_freq": 1e4}, ["rope_local_base_freq"]),
        ({"dtype": "float32"}, ["torch_dtype", "'bfloat16'", "dtype", "'float32'"]),
        ({"sliding_window": 512}, ["sliding_window", "512"]),
        ({"use_sliding_window": True}, ["use_sliding_window", "True"]),
        ({"attention_chunk_size": 64}, ["attention_chunk_size", "64"]),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping", "30.0"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
        ({"scoring_func": "softmax"}, ["scoring_func", "'softmax'"]),
        ({"router_score_function": "softmax"}, ["router_score_function"]),
        ({"moe_layers": [*range(1, 20)]}, ["moe_layers"]),
        ({"mlp_only_layers": [0]}, ["mlp_only_layers", "[0]"]),
        ({"first_k_dense_replace": 1}, ["first_k_dense_replace", "1"]),
        ({"n_group": 8}, ["n_group", "8"]),
        ({"num_experts": 8}, ["num_experts is 8", "num_local_experts is 60"]),
        ({"hidden_activation": "gelu"}, ["hidden_activation is 'gelu'"]),
        ({"norm_eps": 1e-6}, ["norm_eps is 1e-06"]),
        ({"mlp_bias": True}, ["mlp_bias", "True"]),
        ({"no_rope_layers": None, "no_rope_layer_interval": 4}, ["no_rope_layer_interval", "4"]),
        ({"query_pre_attn_scalar": 256}, ["query_pre_attn_scalar", "256"]),
        ({"attention_multiplier": 0.01}, ["attention_multiplier"]),
        ({"embedding_multiplier": 12.0}, ["embedding_multiplier", "12.0"]),
        ({"logits_scaling": 8.0}, ["logits_scaling", "8.0"]),
        ({"text_config": {"hidden_size": 768}}, ["text_config"]),
        ({"mystery": 1}, ["mystery", "1"]),
        ({"mystery": False}, ["mystery", "False"]),
        ({"feed_forward_proj": "gated-gelu"}, ["feed_forward_proj", "'gated-gelu'"]),
        ({"nonlinearity": "relu"}, ["nonlinearity", "'relu'"]),
        ({"glu": "geglu"}, ["glu", "'geglu'"]),
        ({"activation_name": "relu"}, ["activation_name"]),
        ({"mystery": "ReLU"}, ["mystery", "'ReLU'"]),
        ({"mystery": ["silu", "gelu"]}, ["mystery", "'gelu'"]),
        ({"norm_type": "layernorm"}, ["norm_type", "'layernorm'"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"quantization": {**INT4_QUANTIZATION, "zero_point": True}}, ["quantization.zero_point"]),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, ["mxfp4"]),
        ({"quantization": {"group_size": 64, "bits": 4}}, ["quantization.group_size", "64"]),
        ({"quantization": {"bits": 4}}, ["group_size is missing"]),
        ({"quantization": {"group_size": 32, "bits": 4, "lm_head": False}}, ["lm_head"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_nothing_that_changes_the_numbers_is_ignored(changes: dict[str, Any], parts: list[str]):
    with pytest.raises(UserError) as error:
        ModelArgs.from_dict({**PUBLISHED, **changes})
    for part in parts:
        assert part in str(error.value)


def test_another_models_name_is_no_field_by_itself():
    with pytest.raises(UserError, match=r"num_local_experts is missing.*'num_experts'"):
        ModelArgs.from_dict(respelt("num_local_experts", num_experts=60))


def test_a_missing_head_dim_must_follow():
    config = respelt("head_dim", num_attention_heads=20)
    with pytest.raises(UserError, match=r"head_dim is missing, and hidden_size \(768\)"):
        ModelArgs.from_dict(config)


def test_a_number_of_layers_that_no_model_has_is_refused_at_once():
    with pytest.raises(UserError, match="num_hidden_layers is 300000; it must be at most 1000"):
        dataclasses.replace(PRESETS["tiny"], num_hidden_layers=300_000, no_rope_layers=())
