"""What both sides of a comparison run on, and the checks that come before it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint, open_checkpoint
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError


def open_for_torch(folder: Path) -> Checkpoint:
    """The checkpoint; raises UserError for a layout that the PyTorch reference does not read."""
    checkpoint = open_checkpoint(folder)
    if checkpoint.layout is Layout.MLX_INT4:
        raise UserError(
            f"{folder} is in mlx-lm's INT4 layout, which the PyTorch reference does not read: "
            f"convert it back first, `mobilemoe convert {folder} OUTPUT --to published`, and "
            "compare OUTPUT."
        )
    return checkpoint


def check_tolerance(tolerance: float | None) -> None:
    """Raise UserError for one that no error can be compared with."""
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise UserError(f"tolerance is {tolerance}; it must be a finite number, 0 or more.")


def sequence(
    folder: Path,
    args: ModelArgs,
    prompt: str | None,
    num_tokens: int,
    seed: int,
    takes: tuple[str, int] | None = None,
) -> list[int]:
    """`prompt`, tokenised after the beginning token, or `num_tokens` random tokens of `seed`.

    `takes`: what takes how many tokens; None: the model, as many as it has positions. Raises
    UserError for a negative seed, and for a sequence that is empty or longer.
    """
    if seed < 0:
        raise UserError(f"seed is {seed}; it must be a whole number, 0 or more.")
    what, most = takes or ("this model", args.max_position_embeddings)
    tokens: list[int] = []
    if prompt is not None:
        from mobilemoe_mlx.chat_format import encode_text
        from mobilemoe_mlx.tokenizer import load_tokenizer

        begin = [] if args.bos_token_id is None else [args.bos_token_id]
        tokens = begin + encode_text(load_tokenizer(folder), prompt)
        num_tokens = len(tokens)
    if not 1 <= num_tokens <= most:
        raise UserError(f"The sequence has {num_tokens} tokens; {what} takes 1 to {most}.")
    if prompt is None:
        tokens = np.random.default_rng(seed).integers(args.vocab_size, size=num_tokens).tolist()
    return tokens
