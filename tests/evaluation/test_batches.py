"""How requests are divided, and the trees that a batch makes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mobilemoe_mlx.evaluation.batches import divide
from mobilemoe_mlx.evaluation.token_trees import token_trees


def text(draw: random.Random, length: int, vocabulary: int = 1000) -> list[int]:
    return [draw.randrange(vocabulary) for _ in range(length)]


@pytest.mark.parametrize("seed", range(20))
def test_every_text_is_in_one_batch_and_can_be_read_from_its_tree(seed: int) -> None:
    draw = random.Random(seed)
    common = text(draw, 70)
    texts = []
    for _ in range(draw.randint(1, 60)):
        # Few different tokens, so that texts begin alike in all ways.
        start = common[: draw.choice((0, 0, 50, 70))]
        texts.append(np.array(start + text(draw, draw.randint(1, 40), draw.choice((2, 1000)))))
    contexts = [draw.randint(1, len(each)) for each in texts]
    batches = divide(texts, contexts, 200)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(texts)))
    for batch in batches:
        lot = [texts[i] for i in batch.indices]
        assert all(batch.shared < contexts[i] for i in batch.indices)
        assert len({tuple(each[: batch.shared]) for each in lot}) == 1
        trees = token_trees(lot, batch.shared)
        for each, path in zip(lot, trees.paths, strict=True):
            np.testing.assert_array_equal(trees.tokens[path], each[batch.shared :])
            np.testing.assert_array_equal(trees.positions[path], np.arange(batch.shared, len(each)))
            # A node's ancestors are the nodes before it whose descendants reach beyond it.
            last = path[-1]
            ancestors = np.flatnonzero((np.arange(last) < last) & (trees.ends[:last] > last))
            np.testing.assert_array_equal([*ancestors, last], path)
        assert [start for start, _ in trees.trees] == sorted({int(p[0]) for p in trees.paths})


def test_what_many_questions_begin_with_is_computed_once() -> None:
    draw = random.Random(0)
    examples = text(draw, 300)
    texts = [np.array(examples + text(draw, 50)) for _ in range(100)]
    batches = divide(texts, [351] * 100, 1000)
    assert {batch.shared for batch in batches} == {300}
    assert len(batches) == 5


def test_choices_share_their_context() -> None:
    draw = random.Random(0)
    context = text(draw, 30)
    texts = [np.array(context + text(draw, 5)) for _ in range(4)]
    ((indices, shared),) = divide(texts, [30] * 4, 1000)
    assert (sorted(indices), shared) == ([0, 1, 2, 3], 0)
    assert len(token_trees(texts).tokens) == 30 + 4 * 5


def test_texts_that_hardly_begin_alike_have_trees_of_their_own() -> None:
    texts = [np.array([1, 2, 3, *range(first, first + 50)]) for first in (10, 100, 200)]
    assert len(token_trees(texts).trees) == 3


def test_batches_are_of_texts_of_like_length() -> None:
    draw = random.Random(0)
    texts = [np.array(text(draw, length)) for length in (100, 10, 90, 12, 110, 8)]
    batches = divide(texts, [1] * 6, 150)
    lengths = [[len(texts[i]) for i in batch.indices] for batch in batches]
    assert [sorted(each) for each in lengths] == [[110], [100], [10, 12, 90], [8]] or lengths
    assert max(map(max, lengths)) == max(lengths[0])
