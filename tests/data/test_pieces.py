"""Cutting long texts where they have a seam."""

from __future__ import annotations

import random

import pytest

from mobilemoe_mlx.data.pieces import pieces

FUNCTION = "def f(x):\n    y = x\n\n    return y\n"


@pytest.mark.parametrize("most", [1, 7, 40, 1000])
def test_joined_they_are_the_text_and_none_is_too_long(most: int) -> None:
    generator = random.Random(0)
    text = "".join(generator.choices("ab \n", k=500))
    found = list(pieces(text, most))
    assert "".join(found) == text
    assert max(map(len, found)) <= most
    assert all(found)


def test_a_short_text_is_one_piece() -> None:
    assert list(pieces(FUNCTION, len(FUNCTION))) == [FUNCTION]


def test_the_best_seam_is_taken() -> None:
    """Between functions, else at a blank line, else at a line's end, else anywhere."""
    two = FUNCTION + "\n\n" + FUNCTION
    assert list(pieces(two, len(two) - 1)) == [FUNCTION + "\n\n", FUNCTION]
    assert list(pieces(FUNCTION, 30)) == ["def f(x):\n    y = x\n\n", "    return y\n"]
    assert list(pieces("ab\ncd\nef", 7)) == ["ab\ncd\n", "ef"]
    assert list(pieces("abcdef", 4)) == ["abcd", "ef"]


def test_a_seam_near_the_start_is_left_alone() -> None:
    """A piece of a line or two would cost a text its context."""
    assert list(pieces("a\n\n" + "b" * 40 + "\ncc", 42)) == ["a\n\n" + "b" * 39, "b\ncc"]
