"""How many blocks the sorted form of the MoE needs: whole blocks of rows of one expert."""

from __future__ import annotations

# Rows of one expert that are multiplied together. Every block gathers and unpacks a whole expert,
# and the shapes are those of the worst routing, so few rows cost memory traffic and many cost
# arithmetic: docs/decisions.md has the balance that `benchmarks/coreml_blocks.py` measures.
BLOCK_ROWS = 32


def block_rows(tokens: int) -> int:
    """Rows of a block for `tokens` tokens, which are as many as an expert can have."""
    return min(BLOCK_ROWS, tokens)


def most_blocks(tokens: int, top_k: int, experts: int, rows: int) -> int:
    """Blocks of `rows` rows that hold every routing of `tokens` tokens to `top_k` experts each."""
    pairs = tokens * top_k
    # Each expert with tokens leaves at most rows - 1 rows of its last block empty; none has more
    # than all tokens.
    return min((pairs + min(experts, pairs) * (rows - 1)) // rows, experts * -(-tokens // rows))
