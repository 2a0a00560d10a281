"""How long a proof will take, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

_SILENCE = 10.0  # seconds after which it says how far a job is
_MEASURED = 2.0  # seconds of work after which what was predicted is corrected by what it took

T = TypeVar("T")


class Progress:
    """Says what is being done and about how long the rest takes.

    `jobs`: what will be done, in this order, and the seconds that each is predicted to take. `say`
    hears one line at a time. `now`: a clock, in seconds.
    """

    def __init__(
        self,
        jobs: Mapping[str, float],
        say: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = dict(jobs)
        self._names = list(jobs)
        self._say, self._now = say, now
        self._started = self._spoke = now()
        self._before = self._within = self._current = 0.0  # predicted seconds of what is done
        say(f"this takes {duration(sum(jobs.values()))}, by its size, on two processor cores")

    def begin(self, job: str) -> None:
        """The job before is done; `job` is next."""
        self._before += self._current
        self._current, self._within = self._jobs[job], 0.0
        number = self._names.index(job) + 1
        left = f", {self._left()} left" if number > 1 else ""
        self._speak(f"[{number}/{len(self._names)}] {job}{left}")

    def watched(self, steps: Iterable[T], seconds: Callable[[T], float]) -> Iterator[T]:
        """`steps` of the current job, each done when the next one is taken."""
        for step in steps:
            yield step
            self._within = min(self._within + seconds(step), self._current)
            if self._now() - self._spoke >= _SILENCE:
                self._speak(f"      {self._within / self._current:.0%}, {self._left()} left")

    def _left(self) -> str:
        done = self._before + self._within
        left = max(0.0, sum(self._jobs.values()) - done)
        taken = self._now() - self._started
        return duration(left * taken / done if taken > _MEASURED and done > 0 else left)

    def _speak(self, text: str) -> None:
        self._spoke = self._now()
        self._say(text)


def duration(seconds: float) -> str:
    """Seconds as a person says them: "about 40 seconds", "about 13 minutes", "about 2.5 hours"."""
    if seconds < 5:
        return "a few seconds"
    if seconds < 57.5:
        return f"about {round(seconds / 5) * 5} seconds"
    if seconds < 5400:
        minutes = round(seconds / 60)
        return f"about {minutes} minute{'s' if minutes > 1 else ''}"
    return f"about {seconds / 3600:.1f} hours"
