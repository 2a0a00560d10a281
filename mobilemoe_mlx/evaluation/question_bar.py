"""The bar of an evaluation: questions answered, and when all will be."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from mobilemoe_mlx.evaluation.harness_model import Progress
    from mobilemoe_mlx.evaluation.tasks import LoadedTask


class QuestionBar:
    """How many questions are answered, and when all will be."""

    def __init__(self, questions: int) -> None:
        self._bar = tqdm(total=questions, unit="question", file=sys.stderr, mininterval=0.5)
        self._before = 0  # questions of the tasks that are done
        self._task: LoadedTask | None = None

    def __enter__(self) -> QuestionBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, task: LoadedTask) -> None:
        """The next task."""
        self._task = task
        self._bar.set_description(task.name)

    def report(self, progress: Progress) -> None:
        """How far the task's requests are: their tokens, in shares of its questions."""
        assert self._task is not None
        share = progress.tokens / max(1, progress.of_tokens)
        self._move(int(share * self._task.questions))

    def end(self) -> None:
        """The task is done."""
        assert self._task is not None
        self._move(self._task.questions)
        self._before += self._task.questions

    def _move(self, of_task: int) -> None:
        self._bar.update(max(0, self._before + of_task - self._bar.n))
