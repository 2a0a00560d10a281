"""How long a proof takes, before it begins and while it runs."""

from __future__ import annotations

import pytest

from mobilemoe_mlx.verify.progress import Progress, duration


class Clock:
    """A clock that stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_what_is_left_is_corrected_by_what_it_took() -> None:
    """Jobs of 10, 100 and 100 predicted seconds on a machine of half the speed."""
    said: list[str] = []
    clock = Clock()
    progress = Progress({"a": 10.0, "b": 100.0, "c": 100.0}, said.append, clock)
    progress.begin("a")
    clock.seconds += 20
    progress.begin("b")
    for _ in progress.watched(range(4), lambda step: 25.0):
        clock.seconds += 50
    progress.begin("c")
    assert said == [
        "this takes about 4 minutes, by its size, on two processor cores",
        "[1/3] a",
        "[2/3] b, about 7 minutes left",
        "      25%, about 6 minutes left",
        "      50%, about 5 minutes left",
        "      75%, about 4 minutes left",
        "      100%, about 3 minutes left",
        "[3/3] c, about 3 minutes left",
    ]


def test_short_steps_are_not_said() -> None:
    said: list[str] = []
    progress = Progress({"a": 1.0}, said.append, Clock())
    progress.begin("a")
    assert list(progress.watched("xyz", lambda step: 1.0)) == ["x", "y", "z"]
    assert len(said) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "a few seconds"),
        (7, "about 5 seconds"),
        (57, "about 55 seconds"),
        (58, "about 1 minute"),
        (119, "about 2 minutes"),
        (5300, "about 88 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_durations_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
