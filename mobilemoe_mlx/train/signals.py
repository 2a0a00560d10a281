"""Ctrl-C and SIGTERM during training: stop between two steps, so that a checkpoint can be saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import mlx.core as mx

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Training was stopped by a signal; the stage can be resumed from where it stood."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a shell expects of a command that a signal ended: 130 or 143."""
        return 128 + self.number


class StopSignals:
    """Notes the first SIGINT or SIGTERM; a second one ends the process at once.

    Outside the main thread, where Python allows no handlers, signals do what they always do.
    """

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group
        self._received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self._group.rank() == 0:
            # Not `print`: a handler may run in the middle of another write to the same stream.
            os.write(2, b"\nStopping after this step. Once more stops at once, without saving.\n")

    def agree(self, due: bool = False) -> bool:
        """True when the first process says `due`; called by all processes at the same point.

        Raises Stopped, in every process, when one of them has received a signal.
        """
        flags = [
            self._received == signal.SIGINT,
            self._received == signal.SIGTERM,
            due and self._group.rank() == 0,
        ]
        if self._group.size() > 1:
            total = mx.distributed.all_sum(mx.array(flags, mx.int32), group=self._group)
            flags = [count > 0 for count in total.tolist()]
        for number, is_set in zip(_SIGNALS, flags, strict=False):
            if is_set:
                raise Stopped(number)
        return flags[2]
