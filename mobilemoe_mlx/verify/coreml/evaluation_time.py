"""About how long the evaluation of one call takes, by the sizes of the model."""

from __future__ import annotations

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.coreml.expert_blocks import block_rows, most_blocks
from mobilemoe_mlx.numerics.tolerance import Arithmetic

# Seconds on two cores, fitted to measurements of S (docs/numerics.md, "How long it takes"): per
# weight of an expert that the program unpacks, and per product of an activation with a weight.
_UNPACKED: dict[Arithmetic, float] = {"float32": 1.75e-8, "declared": 3.3e-8}
_PRODUCT: dict[Arithmetic, float] = {"float32": 5e-11, "declared": 7e-11}

# The same of the custom layers' reference: per weight that a call unpacks, and per product.
_REFERENCE_UNPACKED = 4e-9
_REFERENCE_PRODUCT = 5e-12


def core_ops_seconds(args: ModelArgs, arithmetic: Arithmetic, tokens: int) -> float:
    """One call of `tokens` tokens, padding included, of the ML Program form."""
    slots, experts = args.num_experts_per_tok, args.num_local_experts
    gathered = slots if tokens == 1 else most_blocks(tokens, slots, experts, block_rows(tokens))
    unpacked = args.num_hidden_layers * gathered * 3 * args.hidden_size * args.intermediate_size
    products = tokens * account(args).active_parameters
    return unpacked * _UNPACKED[arithmetic] + products * _PRODUCT[arithmetic]


def custom_layer_seconds(args: ModelArgs, tokens: int) -> float:
    """One call of `tokens` tokens of the custom layers' reference, which unpacks experts in use."""
    sizes = account(args)
    share = min(1.0, tokens * args.num_experts_per_tok / args.num_local_experts)
    in_use = sizes.active_parameters + share * (sizes.total_parameters - sizes.active_parameters)
    return in_use * _REFERENCE_UNPACKED + tokens * sizes.active_parameters * _REFERENCE_PRODUCT
