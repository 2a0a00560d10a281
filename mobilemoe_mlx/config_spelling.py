"""Reads every known spelling of config.json into the published one, and ignores nothing silently.

A field either has its published name, is another spelling of one, has the one value that MobileMoE
implements, or has no part in the model's numbers. All others are refused by name. Sources:
transformers' `PreTrainedConfig`, its RoPE blocks (versions 4 and 5) and its Llama 4 configuration.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from mobilemoe_mlx.errors import UserError, did_you_mean


def _names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Other models' names of published fields. Beside the published name with the same value such a
# field says nothing new; otherwise it is refused.
_OTHER_NAMES = {
    "num_experts": "num_local_experts",
    "n_routed_experts": "num_local_experts",
    "num_routed_experts": "num_local_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "moe_intermediate_size": "intermediate_size",
    "shared_expert_intermediate_size": "intermediate_size_mlp",
    "hidden_activation": "hidden_act",
    "activation_function": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "layer_norm_eps": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps",
    "num_layers": "num_hidden_layers",
}

# Fields of no account for the numbers: how a model is trained, stored, labelled or sampled from.
_BOOKKEEPING = _names(
    # of every configuration
    "architectures auto_map transformers_version name_or_path model_file use_cache",
    "initializer_range pad_token_id sep_token_id decoder_start_token_id tokenizer_class",
    "output_attentions output_hidden_states return_dict return_dict_in_generate torchscript",
    "problem_type id2label label2id num_labels finetuning_task task_specific_params prefix",
    "gradient_checkpointing cache_implementation attn_implementation experts_implementation",
    # of training alone
    "output_router_logits router_aux_loss_coef router_z_loss_coef router_jitter_noise",
    # of Llama 4's attn_temperature_tuning, which must be false
    "attn_scale floor_scale",
    # of generation, which options and generation_config.json decide
    "do_sample early_stopping max_length min_length max_new_tokens num_beams num_beam_groups",
    "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty",
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences",
    "output_scores forced_bos_token_id forced_eos_token_id remove_invalid_values",
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
)

# Fields of related models, with the value that leaves MobileMoE's numbers as they are.
_NEUTRAL: dict[str, Any] = {
    "mlp_bias": False,
    "use_bias": False,
    "qkv_bias": False,
    "lm_head_bias": False,
    "clip_qkv": False,
    "use_sliding_window": False,
    "pretraining_tp": 1,
    "hidden_dropout": 0,
    "embd_pdrop": 0,
    "resid_pdrop": 0,
    "partial_rotary_factor": 1,
    "rope_interleave": True,  # adjacent pairs
    "logit_scale": 1,
    "logits_scaling": 1,
    "embedding_multiplier": 1,
    "residual_multiplier": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",  # chosen by biased, weighted by unbiased score
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "first_k_dense_replace": 0,
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "mlp_only_layers": [],
    "is_causal": True,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "use_bfloat16": False,
    "is_decoder": False,
    "quantize_activations": False,  # mlx-lm's loader adds it
}

# Understood below, though they are not published fields.
_UNDERSTOOD = _names(
    "dtype rope_parameters original_max_position_embeddings quantization quantization_config",
    "moe_layers no_rope_layer_interval attention_chunk_size sliding_window",
    "query_pre_attn_scalar",
)

# Numbers, switches and objects may be anything. A text or a list is taken for a description, unless
# its name has one of these parts, or it is a word with one of those.
_PARTS_OF_A_MODEL = _names(
    "act attn attention bias chunk conv embed expert factor feed ffn func gate glu head hidden",
    "layer linear logit mask method mlp moe norm position quant residual rope rotary rout scal",
    "scor size softcap theta tie type weight window",
)
_PARTS_OF_AN_ACTIVATION = ("elu", "glu", "swish", "silu", "mish", "tanh", "sigmoid", "softmax")


def published_fields(config: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The content of config.json under the names in `known`, the published ones, without nulls.

    `rope_scaling` is one block with `rope_type` and nothing about theta, or absent. Raises
    UserError naming the field for a contradiction between two spellings, and for a value that is
    not MobileMoE's. `check_unknown` looks at the rest.
    """
    given = {name: value for name, value in config.items() if value is not None}
    fields = {name: value for name, value in given.items() if name in known}
    if "dtype" in given or "torch_dtype" in given:
        fields["torch_dtype"] = _dtype(given)
    _check_neutral(given)
    fields |= _rope(given)
    if "head_dim" not in fields:
        fields |= _head_dim(given)
    if "quantization_config" in given and given["quantization_config"] != given.get("quantization"):
        raise bad(
            "quantization_config",
            given["quantization_config"],
            "quantised checkpoints are read by the block 'quantization' alone",
        )
    return fields


def check_unknown(config: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UserError for the first field that may change the numbers and is not understood."""
    for name, value in config.items():
        understood = name in known or name in _BOOKKEEPING or name in _NEUTRAL
        if value is None or understood or name in _UNDERSTOOD or name.startswith("_"):
            continue
        near = difflib.get_close_matches(name, sorted(known), 1, cutoff=0.9)
        meant = _OTHER_NAMES.get(name, near[0] if near else None)
        if meant is not None and meant in config:
            if config[meant] == value:
                continue
            raise UserError(
                f"config.json: {name} is {value!r} and {meant} is {config[meant]!r}: they mean the "
                f"same, and only {meant} is a field of MobileMoE. Remove {name}."
            )
        if isinstance(value, str | list) and _describes(name.lower(), value):
            continue
        hint = did_you_mean(name, [n for n in known if n not in config])
        raise UserError(
            f"config.json: {name} is not a known field{hint or _short(value)}. It may change what "
            "the model computes, so it is not ignored: correct its name, or remove it if it only "
            "describes."
        )


def without_other_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without the fields that only spell a published one differently."""
    respelt = {"dtype", "rope_parameters", "original_max_position_embeddings", *_OTHER_NAMES}
    return {name: value for name, value in config.items() if name not in respelt}


def other_names(field: str) -> list[str]:
    """What other models call the published `field`."""
    return [name for name, published in _OTHER_NAMES.items() if published == field]


def bad(name: str, value: Any, why: str) -> UserError:
    """The error for one field's value."""
    return UserError(f"config.json: {name} is {value!r}; {why}.")


def _describes(name: str, value: str | list[Any]) -> bool:
    values = [value] if isinstance(value, str) else value
    words = [v.lower() for v in values if isinstance(v, str) and " " not in v]
    activation = any(part in word for word in words for part in _PARTS_OF_AN_ACTIVATION)
    return not activation and not any(part in name for part in _PARTS_OF_A_MODEL)


def _short(value: Any) -> str:
    text = repr(value)
    return f" (its value: {text if len(text) <= 60 else text[:57] + '...'})"


def _dtype(given: Mapping[str, Any]) -> Any:
    """`torch_dtype`, which transformers 5 calls `dtype`."""
    spelt = {n: given[n] for n in ("torch_dtype", "dtype") if n in given}
    plain = {n: v.removeprefix("torch.") if isinstance(v, str) else v for n, v in spelt.items()}
    values = list(plain.values())
    if values[0] != values[-1]:
        raise _contradiction(spelt)
    return values[0]


def _check_neutral(given: Mapping[str, Any]) -> None:
    for name, only in _NEUTRAL.items():
        if name in given and given[name] != only:
            raise bad(name, given[name], f"only {only!r} is what MobileMoE implements")
    layers = given.get("num_hidden_layers")
    if (
        "moe_layers" in given
        and isinstance(layers, int)
        and given["moe_layers"] != [*range(layers)]
    ):
        raise bad(
            "moe_layers", given["moe_layers"], "every MobileMoE layer is a mixture of experts"
        )
    if "no_rope_layer_interval" in given and not given.get("no_rope_layers"):
        raise bad(
            "no_rope_layer_interval",
            given["no_rope_layer_interval"],
            "without no_rope_layers it would take RoPE from some layers",
        )
    context = given.get("max_position_embeddings")
    for name in ("attention_chunk_size", "sliding_window"):
        span = given.get(name)
        off = name == "sliding_window" and given.get("use_sliding_window") is False
        whole = isinstance(span, int) and isinstance(context, int) and span >= context
        if span is not None and not off and not whole:
            raise bad(
                name, span, f"MobileMoE attends in full, to all of its {context} tokens of context"
            )
    head_dim = given.get("head_dim")
    if given.get("query_pre_attn_scalar", head_dim) != head_dim:
        raise bad(
            "query_pre_attn_scalar",
            given["query_pre_attn_scalar"],
            "MobileMoE scales attention by 1 / sqrt(head_dim)",
        )


def _head_dim(given: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' rule where `head_dim` is absent."""
    hidden, heads = given.get("hidden_size"), given.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        return {}  # what is wrong with these is said of them
    if hidden % heads:
        raise UserError(
            f"config.json: head_dim is missing, and hidden_size ({hidden}) is not a multiple of "
            f"num_attention_heads ({heads}), from which it would follow."
        )
    return {"head_dim": hidden // heads}


def _rope(given: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of wherever they stand.

    Before transformers 5: `rope_theta`, and a block `rope_scaling` with `rope_type` (or `type`).
    Since: one block `rope_parameters` with the theta inside, or one such block for each layer type.
    """
    thetas = {"rope_theta": given["rope_theta"]} if "rope_theta" in given else {}
    blocks: dict[str, dict[str, Any]] = {}
    for name in ("rope_scaling", "rope_parameters"):
        block = given.get(name)
        if block is not None and not isinstance(block, dict):
            raise bad(name, block, "it must be an object or null")
        if not block:
            continue
        values = _of_full_attention(name, block)
        if "rope_theta" in values:
            thetas[f"{name}.rope_theta"] = values.pop("rope_theta")
        if values.pop("partial_rotary_factor", 1) != 1:
            raise bad(f"{name}.partial_rotary_factor", block, "MobileMoE turns all of each head")
        blocks[name] = _typed(name, values)
    spelt = [*thetas.values()]
    if any(theta != spelt[0] for theta in spelt[1:]):
        raise _contradiction(thetas)
    if len(blocks) == 2 and blocks["rope_scaling"] != blocks["rope_parameters"]:
        raise _contradiction(blocks)
    out: dict[str, Any] = {}
    if thetas:
        out["rope_theta"] = next(iter(thetas.values()))
    for name, block in blocks.items():
        out["rope_scaling"] = _with_original(name, block, given)
    if not blocks:
        _with_original("rope_scaling", {}, given)
    return out


def _of_full_attention(name: str, block: dict[str, Any]) -> dict[str, Any]:
    """The values of a block; of one with a block for each layer type, those of full attention."""
    values = {key: value for key, value in block.items() if value is not None}
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    if not nested:
        return values
    chosen = nested.get("full_attention")
    for key, value in values.items():
        if chosen is None or value != chosen:
            raise bad(
                f"{name}.{key}",
                value,
                "every MobileMoE layer is of the type full_attention, and has its block alone",
            )
    return {key: value for key, value in (chosen or {}).items() if value is not None}


def _typed(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The block with `rope_type`, whose older name is `type`."""
    spelt = {f"{name}.{key}": values.pop(key) for key in ("rope_type", "type") if key in values}
    kinds = [*spelt.values()]
    if not kinds:
        if values:
            raise UserError(
                f"config.json: {name} has {', '.join(sorted(values))}, but no rope_type."
            )
        kinds = ["default"]
    if kinds[0] != kinds[-1]:
        raise _contradiction(spelt)
    return {"rope_type": kinds[0], **values}


def _with_original(name: str, block: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The block with `original_max_position_embeddings`, which some files have outside it."""
    field = "original_max_position_embeddings"
    if field not in given:
        return block
    if block.get("rope_type", "default") == "default":
        inside = given.get("max_position_embeddings")
        where = "max_position_embeddings (RoPE is not stretched)"
    else:
        inside, where = block.get(field, given[field]), f"{name}.{field}"
    if given[field] != inside:
        raise _contradiction({field: given[field], where: inside})
    return block if not block or block["rope_type"] == "default" else {**block, field: inside}


def _contradiction(spelt: Mapping[str, Any]) -> UserError:
    (one, first), *_, (other, second) = spelt.items()
    return UserError(
        f"config.json contradicts itself: {one} is {first!r}, but {other} is {second!r}. Remove "
        "the one that is wrong."
    )
