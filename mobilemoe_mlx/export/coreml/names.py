"""Every name in a package: inputs, outputs, states, constants and the values that checks look at.

The exporter builds with these names and `mobilemoe verify` looks for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mobilemoe_mlx.config import ModelArgs

PREFILL, DECODE = "prefill", "decode"
TOKENS, POSITION, LENGTH = "tokens", "position", "length"
KEY_CACHE, VALUE_CACHE = "key_cache", "value_cache"
LOGITS = "logits"
# Custom-layer packages only: the rows that the app copies into its caches.
NEW_KEYS, NEW_VALUES = "new_keys", "new_values"

ROPE_COS, ROPE_SIN = "rope_cos", "rope_sin"

Form = Literal["int4", "bytes", "scale", "float32"]


@dataclass(frozen=True)
class Constant:
    """A constant of the program and the checkpoint's tensors whose bytes it holds.

    `form`: "int4": 4-bit codes and float16 scales of one or more linears, stacked along *out*;
    "bytes": packed expert codes as they are; "scale": their float16 scales; "float32": a float
    tensor, widened when the checkpoint has it in bfloat16.
    """

    name: str
    form: Form
    sources: tuple[str, ...]  # published module paths ("int4") or tensor names


def layer(index: int, part: str) -> str:
    """The name of `part` of decoder layer `index` (0-based)."""
    return f"layers_{index}_{part}"


def hidden(index: int) -> str:
    """Residual stream after layer `index`, float32 [tokens, hidden]."""
    return layer(index, "hidden")


def scores(index: int) -> str:
    """Router scores with selection bias, float32 [tokens, experts]."""
    return layer(index, "scores")


def selection(index: int) -> str:
    """1 for the expert of each slot, float32 [tokens, slots, experts], by falling score."""
    return layer(index, "selection")


def experts(index: int) -> str:
    """Selected experts, [tokens, slots], by falling score (custom-layer packages)."""
    return layer(index, "experts")


def expert_weights(index: int) -> str:
    """Weights of the selected experts, float32 [tokens, slots]."""
    return layer(index, "expert_weights")


def constants(args: ModelArgs) -> list[Constant]:
    """All constants that hold the checkpoint's tensors, each tensor once."""
    found = [
        Constant("embedding", "int4", ("model.embed_tokens",)),
        Constant("norm", "float32", ("model.norm.weight",)),
    ]
    for index in range(args.num_hidden_layers):
        found += layer_constants(index)
    return found


def layer_constants(index: int) -> list[Constant]:
    """The constants of one decoder layer."""
    path = f"model.layers.{index}"
    attention, moe = f"{path}.self_attn", f"{path}.feed_forward"

    def constant(part: str, form: Form, *sources: str) -> Constant:
        return Constant(layer(index, part), form, sources)

    return [
        constant("input_norm", "float32", f"{path}.input_layernorm.weight"),
        constant("qkv", "int4", *(f"{attention}.{p}_proj" for p in "qkv")),
        constant("o", "int4", f"{attention}.o_proj"),
        constant("moe_norm", "float32", f"{path}.post_attention_layernorm.weight"),
        constant("router", "float32", f"{moe}.router.weight"),
        constant("expert_bias", "float32", f"{moe}.expert_bias"),
        constant("gate_up_codes", "bytes", f"{moe}.experts.gate_up_qweight"),
        constant("gate_up_scale", "scale", f"{moe}.experts.gate_up_scale"),
        constant("down_codes", "bytes", f"{moe}.experts.down_qweight"),
        constant("down_scale", "scale", f"{moe}.experts.down_scale"),
        constant(
            "shared_gate_up", "int4", *(f"{moe}.shared_expert.{p}_proj" for p in ("gate", "up"))
        ),
        constant("shared_down", "int4", f"{moe}.shared_expert.down_proj"),
    ]
