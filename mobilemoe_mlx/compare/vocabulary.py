"""Do two sides speak of the same tokens?"""

from __future__ import annotations

from mobilemoe_mlx.compare.side import Side
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.files import sha256
from mobilemoe_mlx.tokenizer_file import open_tokenizer


def check_vocabulary(a: Side, b: Side) -> None:
    """Raise UserError unless the two have the same vocabulary, as far as their folders tell."""
    if a.args.vocab_size != b.args.vocab_size:
        raise UserError(
            f"{a.folder} has {a.args.vocab_size:,} tokens and {b.folder} {b.args.vocab_size:,}: "
            "logits of different vocabularies cannot be compared."
        )
    files = [side.tokenizer / "tokenizer.json" for side in (a, b)]
    if not all(file.is_file() for file in files) or sha256(files[0]) == sha256(files[1]):
        return
    pieces_a, pieces_b = (open_tokenizer(side.tokenizer).get_vocab() for side in (a, b))
    if pieces_a != pieces_b:
        differing = {token for _, token in pieces_a.items() ^ pieces_b.items()}
        raise UserError(
            f"The tokenizers of {a.folder} and {b.folder} differ in {len(differing):,} tokens, the "
            f"first {min(differing)}: logits of different vocabularies cannot be compared."
        )
