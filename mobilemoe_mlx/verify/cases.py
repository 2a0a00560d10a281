"""The sequences that an export is proved on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.verify.calls import Call, chat_plan, plan
from mobilemoe_mlx.verify.routing_patterns import PATTERNS, decode_scores, make_scores

CASES = ("short", "long", "full", "chat", "routing")

_DECODED = 4  # tokens after the prompt that go through decode; fewer in the smallest contexts
_CHAT_BLOCKS = 2  # the most blocks' worth of tokens in a chat


class Sizes(NamedTuple):
    """What the sequences depend on."""

    args: ModelArgs
    block: int  # most tokens of one call
    context: int  # positions in the cache


class Case(NamedTuple):
    """A sequence: `tokens`, of which all but the last `decoded` are fed in blocks.

    "chat" mixes both (`calls.chat_plan`); `routing`: the scores that it is run with.
    """

    name: str
    tokens: list[int]
    decoded: int
    routing: list[np.ndarray] | None = None

    def calls(self, sizes: Sizes) -> Iterator[Call]:
        """How the sequence is fed."""
        total = len(self.tokens)
        if self.name == "chat":
            return chat_plan(total, sizes.block, sizes.context)
        return plan(total - self.decoded, total, sizes.block, sizes.context)


def make_case(name: str, sizes: Sizes, seed: int = 0) -> Case:
    """A prompt shorter than a block, one longer, one that fills the cache, a chat, or all routings.

    Tokens are random: every expert and as much of the embedding as possible is to be used.
    """
    block, context = sizes.block, sizes.context
    rng = np.random.default_rng(seed)
    if name == "routing":
        return _routing_case(sizes, rng)
    if name == "chat":
        total, decoded = min(context, _CHAT_BLOCKS * block), 0
    else:
        prompt = {"short": block * 2 // 5, "long": 2 * block + block // 3, "full": context}[name]
        decoded = min(_DECODED, context - 2)
        # Two are a block, and one at least is decoded.
        total = max(2, min(prompt, context - decoded)) + decoded
    return Case(name, rng.integers(sizes.args.vocab_size, size=total).tolist(), decoded)


def _routing_case(sizes: Sizes, rng: np.random.Generator) -> Case:
    """Scores that random tokens do not have: see `routing_patterns`."""
    args, block = sizes.args, sizes.block
    experts, slots = args.num_local_experts, args.num_experts_per_tok
    decoded = min(2 * -(-experts // slots), sizes.context - block)
    # Each pattern once at least: layers take turns, and in the next block the next one is theirs.
    wanted = -(-len(PATTERNS) // args.num_hidden_layers)
    blocks = min(wanted, (sizes.context - decoded) // block)
    patterns = [
        np.concatenate(
            [
                make_scores(PATTERNS[(layer + index) % len(PATTERNS)], block, experts, slots, rng)
                for index in range(blocks)
            ]
            + [decode_scores(decoded, experts, slots, rng)]
        )
        for layer in range(args.num_hidden_layers)
    ]
    tokens = rng.integers(args.vocab_size, size=blocks * block + decoded).tolist()
    return Case("routing", tokens, decoded, patterns)
