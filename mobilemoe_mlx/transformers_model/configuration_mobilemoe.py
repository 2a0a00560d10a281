"""The configuration of MobileMoE (arXiv 2605.27358) for Hugging Face transformers.

Fields have the names of the published config.json; their defaults are those of the size S, except
that RoPE is not stretched. transformers reads `rope_theta` and `rope_scaling` into
`rope_parameters`.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class MobileMoEConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers' base is untyped
    """What config.json says of a MobileMoE checkpoint."""

    model_type = "mobilemoe"
    default_theta = 500000.0
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    vocab_size: int = 128256
    hidden_size: int = 768
    intermediate_size: int = 384  # width of one routed expert
    intermediate_size_mlp: int = 1536  # width of the shared expert; 0: there is none
    num_hidden_layers: int = 20
    num_attention_heads: int = 12
    num_key_value_heads: int = 4
    head_dim: int = 64
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] | None = None
    num_local_experts: int = 60  # 0: every layer is dense, with the width intermediate_size_mlp
    num_experts_per_tok: int = 4
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    use_qk_norm: bool = True
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    output_router_logits: bool = False
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    quantization: dict[str, Any] | None = None  # of INT4 checkpoints

    def _validate_llama3_rope_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: transformers would warn of what is published (both factors 1, 8192 of 8192)."""


__all__ = ["MobileMoEConfig"]
