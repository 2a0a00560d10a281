"""Corpus and tokenizer of the tiny recipe, made where they are not named."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

from mobilemoe_mlx.data.corpus_texts import corpus_texts
from mobilemoe_mlx.data.mixture_config import load_mixture
from mobilemoe_mlx.data.stdlib_corpus import build_stdlib_corpus
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer import train_tokenizer
from mobilemoe_mlx.train.data import data_folder
from mobilemoe_mlx.train.recipe import Recipe
from mobilemoe_mlx.train.run_folder import RunFolder

TRAINING_FILES = ("code.train.jsonl", "docs.train.jsonl", "qa.train.jsonl")
HELDOUT_FILES = ("code.heldout.jsonl", "docs.heldout.jsonl", "qa.heldout.jsonl")


def train_corpus_tokenizer(corpus: Path, vocab_size: int, folder: Path) -> None:
    """Train a tokenizer of `vocab_size` tokens on the training files of the standard-library
    corpus, and write it to `folder`."""
    texts = (corpus_texts(corpus / name) for name in TRAINING_FILES)
    train_tokenizer(itertools.chain.from_iterable(texts), vocab_size, folder)


def with_tiny_data(
    recipe: Recipe, run: RunFolder, init: str | None, say: Callable[[str], None], *, make: bool
) -> Recipe:
    """The recipe with the run's own corpus and tokenizer where it reads a corpus that is not there.

    A stage reads the corpus when its mixture and held-out set name the corpus's files and no
    `data.folder` holds them. The tokenizer is made as well when neither the recipe nor `init` has
    one. With `make` false (the processes that only help) the files are taken to be there.
    """
    stages = {
        name: dataclasses.replace(
            stage, data=dataclasses.replace(stage.data, folder=str(run.corpus.absolute()))
        )
        for name, stage in recipe.stages.items()
        if _reads_the_corpus(recipe, name)
    }
    if not stages:
        return recipe
    if make and not all((run.corpus / name).is_file() for name in TRAINING_FILES + HELDOUT_FILES):
        say(f"Making the corpus from this Python's standard library, in {run.corpus} ...")
        build_stdlib_corpus(run.corpus)
    tokenizer = recipe.tokenizer
    if not tokenizer and init is None:
        tokenizer = str(run.tokenizer.absolute())
        if make and not (run.tokenizer / "tokenizer.json").is_file():
            size = recipe.model.vocab_size
            say(f"Training a tokenizer of {size:,} tokens on it, in {run.tokenizer} ...")
            train_corpus_tokenizer(run.corpus, size, run.tokenizer)
    return dataclasses.replace(recipe, tokenizer=tokenizer, stages={**recipe.stages, **stages})


def _reads_the_corpus(recipe: Recipe, name: str) -> bool:
    stage = recipe.stages[name]
    if stage.data.folder:
        return False
    try:
        sources = load_mixture(recipe.path(stage.data.mixture)).sources
    except UserError:
        return False  # told when the stage is opened
    files = [file for source in sources for file in source.files]
    beside = data_folder(recipe, stage)
    return (
        bool(files)
        and all(source.files for source in sources)
        and set(files) <= set(TRAINING_FILES)
        and set(stage.data.heldout) <= set(HELDOUT_FILES)
        and not any((beside / file).exists() for file in files)
    )
