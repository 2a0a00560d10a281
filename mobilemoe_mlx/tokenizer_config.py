"""What other programs must be told to make of a checkpoint's tokenizer what tokenizer.json says.

`plain_settings` is for mlx-lm's and transformers' loaders and for apps. `register` tells
transformers what a MobileMoE config.json is, so that its tokenizers load beside one: without this,
transformers 5 reads the file as one of an unknown model and fails on its llama3 `rope_scaling`
("no attribute 'max_position_embeddings'"), whatever the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from mobilemoe_mlx.config import MODEL_TYPE
from mobilemoe_mlx.transformers_model.configuration_mobilemoe import MobileMoEConfig


def register() -> None:
    """Make `AutoConfig`, and so `AutoTokenizer`, know MobileMoE; calling it again does nothing."""
    AutoConfig.register(MODEL_TYPE, MobileMoEConfig, exist_ok=True)


# Settings by which loaders rebuild or change a tokenizer that tokenizer.json describes whole.
_REBUILDING = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "auto_map",
    "extra_special_tokens",
    "from_slow",
    "legacy",
    "slow_tokenizer_class",
    "sp_model_kwargs",
    "split_special_tokens",
    "use_default_system_prompt",
    "use_fast",
)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json's content without what would change a token.

    The class is the one that takes tokenizer.json as it is (swift-transformers refuses names that
    it does not know), and spaces are not cleaned up, which would eat the one in "SELECT ?s" and is
    what swift-transformers does unless told otherwise.
    """
    kept = {name: value for name, value in settings.items() if name not in _REBUILDING}
    fixed = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return kept | fixed
