"""How many bytes of text a token stands for: what makes losses of different vocabularies alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mobilemoe_mlx.data.packing import Batch

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"  # SentencePiece's sign for a space


def token_bytes(tokenizer: TokenizerWrapper) -> np.ndarray:
    """Token id -> bytes of UTF-8 text, int64, of a SentencePiece tokenizer; control tokens: 0."""
    sizes = np.zeros(len(tokenizer), np.int64)
    control = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in set(range(len(tokenizer))) - control:
        piece = tokenizer.convert_ids_to_tokens(token)
        is_byte = _BYTE_PIECE.fullmatch(piece)
        sizes[token] = 1 if is_byte else len(piece.replace(_SPACE, " ").encode())
    return sizes


def bytes_per_target(batches: Iterable[Batch], sizes: np.ndarray) -> float:
    """Bytes of text of an average target that counts towards the loss; `sizes`: `token_bytes`."""
    total = targets = 0.0
    for batch in batches:
        total += float((sizes[batch.targets] * batch.loss_mask).sum())
        targets += float(batch.loss_mask.sum())
    return total / targets


def bits_per_byte(nats_per_target: float, target_bytes: float) -> float:
    """A loss in bits per byte of text, where an average target has `target_bytes` bytes."""
    return nats_per_target / math.log(2) / target_bytes
