"""A model of a few thousand parameters, its sizes different from each other where it matters."""

from __future__ import annotations

import dataclasses
from typing import Any

from mobilemoe_mlx.config import ModelArgs


def small_args(**changes: Any) -> ModelArgs:
    """The small model's configuration with some fields changed."""
    small = ModelArgs(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=32,
        intermediate_size_mlp=128,
        num_local_experts=12,
        vocab_size=96,
        bos_token_id=0,
        eos_token_id=(1,),
        max_position_embeddings=256,
    )
    if "num_hidden_layers" in changes:  # the per-layer lists follow it
        changes = {"no_rope_layers": (), "layer_types": (), **changes}
    return dataclasses.replace(small, **changes)
