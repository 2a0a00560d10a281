"""Ends by signals as exceptions, so that what was begun is taken away."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from mobilemoe_mlx.errors import Interrupted, Terminated


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """End by an exception where a terminal or a system says to end, so that nothing is left."""

    def end(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise Interrupted
        raise Terminated(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {
        number: signal.signal(number, end)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup, and a shell's jobs aside
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
