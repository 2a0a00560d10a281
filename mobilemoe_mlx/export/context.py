"""How many positions an export's key/value cache has."""

from __future__ import annotations

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError

CONTEXT = 2048
"""Positions where none are asked for and the model has as many."""


def default_context(args: ModelArgs) -> int:
    """The context where none is asked for: CONTEXT, or the model's if it has fewer."""
    return min(CONTEXT, args.max_position_embeddings)


def check_context(context: int, args: ModelArgs) -> None:
    """Raise UserError for a context that is too short to prove, or beyond the model's."""
    if context < 4:  # two prove a block, and two more the decoding
        raise UserError(f"--context is {context}; it must be at least 4 tokens.")
    if context > args.max_position_embeddings:
        raise UserError(
            f"--context is {context:,}, beyond the {args.max_position_embeddings:,} "
            "positions of the model (config.json max_position_embeddings): ask for less."
        )
