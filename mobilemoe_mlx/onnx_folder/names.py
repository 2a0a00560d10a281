"""Names of a graph's inputs, outputs and of the values that a proof looks at."""

from __future__ import annotations

# onnxruntime-genai's conventions.
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
PAST_KEY = "past_key_values.%d.key"
PAST_VALUE = "past_key_values.%d.value"
PRESENT_KEY = "present.%d.key"
PRESENT_VALUE = "present.%d.value"
LOGITS = "logits"

# The residual stream of the tokens whose logits are computed, float32 [batch, 1, hidden].
LAST_HIDDEN = "last_hidden"


def hidden(layer: int) -> str:
    """The residual stream after a layer, float32 [batch, tokens, hidden]."""
    return f"layers.{layer}.hidden"


def scores(layer: int) -> str:
    """Biased scores of the router, float32 [batch x tokens, experts]."""
    return f"layers.{layer}.scores"


def experts(layer: int) -> str:
    """Selected experts, int64 [batch x tokens, slots]."""
    return f"layers.{layer}.experts"
