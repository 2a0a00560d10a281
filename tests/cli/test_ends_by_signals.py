"""A command that is told to end: by which exceptions, and what it leaves alone."""

from __future__ import annotations

import os
import signal

import pytest

from mobilemoe_mlx.cli.signals import ended_by_signals
from mobilemoe_mlx.errors import Interrupted, Terminated


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (signal.SIGINT, Interrupted),
        (signal.SIGTERM, Terminated),
        (signal.SIGHUP, Terminated),
    ],
)
def test_a_signal_is_an_exception_of_its_own(
    number: signal.Signals, kind: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(kind), ended_by_signals():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
