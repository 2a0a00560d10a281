"""The parameters of the custom layers that follow from a model's configuration."""

from __future__ import annotations

from typing import Any

from mobilemoe_mlx.config import GROUP_SIZE, NORMALIZE_EPS, ModelArgs


def model_parameters(args: ModelArgs) -> dict[str, Any]:
    """Every parameter of the contract that the model `args` decides, by its name there.

    Not in it: `version`, a layer's index, the context, and what a package chooses for its head.
    """
    return {
        "vocab_size": args.vocab_size,
        "hidden_size": args.hidden_size,
        "layers": args.num_hidden_layers,
        "heads": args.num_attention_heads,
        "kv_heads": args.num_key_value_heads,
        "head_dim": args.head_dim,
        "expert_width": args.intermediate_size,
        "shared_width": args.intermediate_size_mlp,
        "experts": args.num_local_experts,
        "experts_per_token": args.num_experts_per_tok,
        "group_size": GROUP_SIZE,
        "norm_eps": args.rms_norm_eps,
        "qk_norm": args.use_qk_norm,
        "qk_norm_eps": args.rms_norm_eps,
        "score_scale": args.head_dim**-0.5,
        "normalize": args.norm_topk_prob,
        "normalize_eps": NORMALIZE_EPS,
        "weight_scale": args.routed_scaling_factor,
    }
