"""What guessing by frequency alone achieves: the loss that training has to beat."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mobilemoe_mlx.train.data import open_heldout, open_mixture
from mobilemoe_mlx.train.recipe import DataConfig, Recipe, StageConfig

# Twice as many change the losses by less than 0.01, and take twice as long to read.
_COUNTED_TOKENS = 100_000


def unigram_loss(recipe: Recipe, stage: StageConfig, tokenizer: TokenizerWrapper) -> float:
    """Cross-entropy (nats per target) of token frequencies on the stage's held-out targets.

    Frequencies: of the first 100,000 targets of the stage's training data, plus one each.
    """
    counts: Counter[int] = Counter()
    documents = open_mixture(recipe, stage, tokenizer)
    while counts.total() < _COUNTED_TOKENS:
        document = next(documents)
        counts.update(t for t, wanted in zip(*document, strict=True) if wanted)
    frequencies = np.ones(recipe.model.vocab_size)
    frequencies[list(counts)] += list(counts.values())
    nats = -np.log(frequencies / frequencies.sum())
    batches = open_heldout(recipe, stage, tokenizer)
    total = sum(float((nats[b.targets] * b.loss_mask).sum()) for b in batches)
    return total / sum(float(b.loss_mask.sum()) for b in batches)


def unigram_losses(recipe: Recipe, tokenizer: TokenizerWrapper) -> dict[str, float]:
    """`unigram_loss` of each stage by name; stages that differ in the order of data share one."""
    by_data: dict[DataConfig, float] = {}
    losses = {}
    for name, stage in recipe.stages.items():
        data = dataclasses.replace(stage.data, seed=0)
        if data not in by_data:
            by_data[data] = unigram_loss(recipe, stage, tokenizer)
        losses[name] = by_data[data]
    return losses
