"""The config.json of the other models that the paper compares with, read for their cost alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mobilemoe_mlx import tables
from mobilemoe_mlx.accounting.architecture import Architecture, Layer
from mobilemoe_mlx.config import MOST_LAYERS
from mobilemoe_mlx.errors import UserError

# `layer_types` of transformers.
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"


def read_architecture(config: dict[str, Any], where: str = "config.json") -> Architecture:
    """The architecture that a config.json describes: Llama, MobileLLM-Pro, OLMoE, Gemma 3, Qwen3.5.

    Of a model that also sees, its text model. A field that is absent has transformers' default of
    the family, but for hidden size, layers and the feed-forward layer, which no published config
    leaves out. Raises UserError, naming `where`, for another family, and for a field that is
    missing or senseless.
    """
    for key in (config.get("model_type"), *_names(config.get("architectures"))):
        if isinstance(key, str) and key in _FAMILIES:
            family, defaults = _FAMILIES[key]
            text = config.get("text_config")
            if isinstance(text, dict):
                return family(_Fields(text, f"{where}: text_config", defaults, config))
            return family(_Fields(config, where, defaults))
    raise UserError(
        f"{where}: model_type is {config.get('model_type')!r}; known are mobilemoe, "
        f"{', '.join(sorted(_FAMILIES))}."
    )


def _names(architectures: Any) -> list[Any]:
    return architectures if isinstance(architectures, list) else []


class _Fields:
    """The fields of a config, checked as they are asked for."""

    def __init__(
        self,
        values: dict[str, Any],
        where: str,
        defaults: Mapping[str, int],
        outer: dict[str, Any] | None = None,
    ) -> None:
        self.values = {**(outer or {}), **values}  # the outer one may hold tie_word_embeddings
        self.where = where
        self.defaults = defaults

    def size(self, name: str, default: int | None = None) -> int:
        """A count of one at least; where it is absent or null, the family's or else `default`."""
        value = self.values.get(name)
        if value is None:
            default = self.defaults.get(name, default)
            if default is None:
                raise UserError(f"{self.where}: the field {name} is missing.")
            return default
        number: int = tables.read_value(tables.Count, value, f"{self.where}: {name}")
        return number

    def layers(self) -> int:
        """How many layers there are; raises UserError for more than any decoder has."""
        number = self.size("num_hidden_layers")
        if number > MOST_LAYERS:
            raise UserError(
                f"{self.where}: num_hidden_layers is {number}; it must be at most {MOST_LAYERS}."
            )
        return number

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false; `default` where the field is absent or null."""
        value = self.values.get(name)
        flag: bool = (
            default if value is None else tables.read_value(bool, value, f"{self.where}: {name}")
        )
        return flag

    def layer_types(self, default: list[str], known: tuple[str, ...]) -> list[str]:
        """One type for each layer, all among the `known`."""
        kinds = self.values.get("layer_types") or default
        kinds = tables.read_value(tuple[str, ...], kinds, f"{self.where}: layer_types")
        layers = self.layers()
        if len(kinds) != layers:
            raise UserError(
                f"{self.where}: layer_types has {len(kinds)} entries but num_hidden_layers is "
                f"{layers}."
            )
        for kind in kinds:
            if kind not in known:
                raise UserError(
                    f"{self.where}: layer_types has {kind!r}; known here: {', '.join(known)}."
                )
        return list(kinds)

    def architecture(self, layers: list[Layer], *, tied: bool) -> Architecture:
        heads = self.size("num_attention_heads")
        return Architecture(
            vocab_size=self.size("vocab_size"),
            hidden_size=self.size("hidden_size"),
            tied=self.flag("tie_word_embeddings", tied),
            max_position_embeddings=self.size("max_position_embeddings"),
            attention_heads=heads,
            key_value_heads=self.size("num_key_value_heads", heads),
            layers=tuple(layers),
        )

    def head_features(self) -> tuple[int, int, int]:
        """Features of one head, of all queries, and of all keys (or values)."""
        heads, hidden = self.size("num_attention_heads"), self.size("hidden_size")
        each = self.size("head_dim", hidden // heads)
        if hidden % heads and self.values.get("head_dim", self.defaults.get("head_dim")) is None:
            raise UserError(
                f"{self.where}: hidden_size ({hidden}) is no multiple of num_attention_heads "
                f"({heads}), and there is no head_dim."
            )
        kv_heads = self.size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise UserError(
                f"{self.where}: num_attention_heads ({heads}) is no multiple of "
                f"num_key_value_heads ({kv_heads})."
            )
        return each, heads * each, kv_heads * each

    def feed_forward(self, width: str = "intermediate_size") -> int:
        """Parameters of a gated feed-forward layer of that width: gate, up and down."""
        return 3 * self.size("hidden_size") * self.size(width)

    def experts(self) -> tuple[int, int]:
        """Routed experts, and how many of them a token selects."""
        experts, selected = self.size("num_experts"), self.size("num_experts_per_tok")
        if selected > experts:
            raise UserError(
                f"{self.where}: num_experts_per_tok ({selected}) is above num_experts ({experts})."
            )
        return experts, selected


def _llama(fields: _Fields) -> Architecture:
    """Llama's layer, with windows where `layer_types` says so."""
    hidden, (_, query, kv) = fields.size("hidden_size"), fields.head_features()
    biases = (query + 2 * kv + hidden) * fields.flag("attention_bias") + (
        2 * fields.size("intermediate_size") + hidden
    ) * fields.flag("mlp_bias")
    kinds = fields.layer_types([_FULL] * fields.layers(), (_FULL, _SLIDING))
    layers = [
        Layer(
            packed=2 * hidden * (query + kv) + fields.feed_forward(),
            vectors=2 * hidden + biases,
            query_features=query,
            key_value_features=kv,
            window=fields.size("sliding_window") if kind == _SLIDING else None,
        )
        for kind in kinds
    ]
    return fields.architecture(layers, tied=False)


def _mobilellm_pro(fields: _Fields) -> Architecture:
    """Llama's layer without weights in its head norms, as in Llama 4; the embedding is tied."""
    model = _llama(fields)
    return fields.architecture(list(model.layers), tied=True)


def _olmoe(fields: _Fields) -> Architecture:
    """Every layer routes; queries and keys are normed over all heads together."""
    hidden, (_, query, kv) = fields.size("hidden_size"), fields.head_features()
    experts, selected = fields.experts()
    layer = Layer(
        packed=2 * hidden * (query + kv),
        vectors=2 * hidden + query + kv + (query + 2 * kv + hidden) * fields.flag("attention_bias"),
        router=experts * hidden,
        expert=fields.feed_forward(),
        experts=experts,
        experts_per_token=selected,
        query_features=query,
        key_value_features=kv,
    )
    return fields.architecture([layer] * fields.layers(), tied=False)


def _gemma3(fields: _Fields) -> Architecture:
    """Four norms a layer, and one of a head's size for queries and keys each."""
    hidden, (head, query, kv) = fields.size("hidden_size"), fields.head_features()
    every = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
    usual = [_SLIDING if (i + 1) % every else _FULL for i in range(fields.layers())]
    biases = (query + 2 * kv + hidden) * fields.flag("attention_bias")
    layers = [
        Layer(
            packed=2 * hidden * (query + kv) + fields.feed_forward(),
            vectors=4 * hidden + 2 * head + biases,
            query_features=query,
            key_value_features=kv,
            window=fields.size("sliding_window") if kind == _SLIDING else None,
        )
        for kind in fields.layer_types(usual, (_FULL, _SLIDING))
    ]
    return fields.architecture(layers, tied=True)


def _qwen3_5(fields: _Fields) -> Architecture:
    """Gated attention in every fourth layer, gated delta rules in the others."""
    return _qwen3_5_layers(fields, lambda layer: _plus(layer, packed=fields.feed_forward()))


def _qwen3_5_moe(fields: _Fields) -> Architecture:
    """The same layers, each with routed experts and a shared one whose output is gated."""
    experts, selected = fields.experts()

    def routed(layer: Layer) -> Layer:
        return dataclasses.replace(
            _plus(layer, packed=fields.feed_forward("shared_expert_intermediate_size")),
            router=(experts + 1) * fields.size("hidden_size"),  # one row is the shared one's gate
            expert=fields.feed_forward("moe_intermediate_size"),
            experts=experts,
            experts_per_token=selected,
        )

    return _qwen3_5_layers(fields, routed)


def _qwen3_5_layers(fields: _Fields, with_feed_forward: Callable[[Layer], Layer]) -> Architecture:
    every = fields.size("full_attention_interval", 4)
    usual = [_LINEAR if (i + 1) % every else _FULL for i in range(fields.layers())]
    kinds = fields.layer_types(usual, (_FULL, _LINEAR))
    of = {_FULL: _qwen3_5_attention, _LINEAR: _qwen3_5_delta_rule}
    layers = {kind: with_feed_forward(of[kind](fields)) for kind in set(kinds)}
    return fields.architecture([layers[kind] for kind in kinds], tied=False)


def _plus(layer: Layer, *, packed: int) -> Layer:
    return dataclasses.replace(layer, packed=layer.packed + packed)


def _qwen3_5_attention(fields: _Fields) -> Layer:
    hidden, (head, query, kv) = fields.size("hidden_size"), fields.head_features()
    return Layer(
        packed=hidden * (3 * query + 2 * kv),  # queries come with as many gates
        vectors=2 * hidden
        + 2 * head
        + (2 * query + 2 * kv + hidden) * fields.flag("attention_bias"),
        query_features=query,
        key_value_features=kv,
    )


def _qwen3_5_delta_rule(fields: _Fields) -> Layer:
    hidden, heads = fields.size("hidden_size"), fields.size("linear_num_value_heads")
    key_head = fields.size("linear_key_head_dim")
    value_head = fields.size("linear_value_head_dim")
    keys, values = fields.size("linear_num_key_heads") * key_head, heads * value_head
    convolved, kernel = 2 * keys + values, fields.size("linear_conv_kernel_dim")
    state = heads * key_head * value_head
    return Layer(
        # Queries, keys and values; their gate; two rates a head; the way out.
        packed=hidden * (convolved + values + 2 * heads + values),
        vectors=2 * hidden + convolved * kernel + 2 * heads + value_head,
        state=state + convolved * kernel,
        # The state is decayed (1 each), read with the key, corrected and read with the query (2
        # each); the convolution is a multiply-add a weight.
        state_flops=7 * state + 2 * convolved * kernel,
    )


# What transformers takes where a config.json says nothing. Heads of keys and values that are not
# here are as many as of queries.
_LLAMA = {"vocab_size": 32000, "num_attention_heads": 32, "max_position_embeddings": 2048}
_OLMOE = {
    "vocab_size": 50304,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}
_GEMMA3 = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 131072,
}
_QWEN3_5 = {
    "vocab_size": 248320,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
_QWEN3_5_MOE = {
    **_QWEN3_5,
    "num_key_value_heads": 2,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}

_FAMILIES: dict[str, tuple[Callable[[_Fields], Architecture], Mapping[str, int]]] = {
    "llama": (_llama, _LLAMA),
    # By its class: its code, and with it the defaults, come with its checkpoint.
    "MobileLLMP1ForCausalLM": (_mobilellm_pro, {}),
    "olmoe": (_olmoe, _OLMOE),
    "gemma3_text": (_gemma3, _GEMMA3),
    "gemma3": (_gemma3, _GEMMA3),
    "qwen3_5_text": (_qwen3_5, _QWEN3_5),
    "qwen3_5": (_qwen3_5, _QWEN3_5),
    "qwen3_5_moe_text": (_qwen3_5_moe, _QWEN3_5_MOE),
    "qwen3_5_moe": (_qwen3_5_moe, _QWEN3_5_MOE),
}
