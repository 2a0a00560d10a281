"""Tells transformers what a MobileMoE config.json is, so that its tokenizers load beside one.

Without this, transformers 5 reads the file as one of an unknown model and fails on its llama3
`rope_scaling` ("no attribute 'max_position_embeddings'"), whatever the tokenizer.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mobilemoe_mlx.config import MODEL_TYPE


class MobileMoEConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers' base is untyped
    """config.json as transformers holds it; `ModelArgs` is what this package uses."""

    model_type = MODEL_TYPE
    # Declared, since the base class reads them before it sets what it was given.
    max_position_embeddings: int = 8192
    rope_parameters: dict[str, Any] | None = None


def register() -> None:
    """Make `AutoConfig`, and so `AutoTokenizer`, know MobileMoE; calling it again does nothing."""
    AutoConfig.register(MODEL_TYPE, MobileMoEConfig, exist_ok=True)
