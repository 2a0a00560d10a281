"""Ctrl-C while coremltools is imported, which takes seconds."""

import signal
import threading
from types import FrameType


def import_coremltools() -> None:
    """Import it, with Ctrl-C put off to the end; for commands, before what uses it.

    It imports PyTorch where that is installed, and goes on after whatever this raises, so that a
    KeyboardInterrupt would be lost and the next import of PyTorch fail.
    """
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)

    before = signal.getsignal(signal.SIGINT)
    is_ours = before is signal.default_int_handler  # not one that a program has set, or ignores
    if is_ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, note)
    try:
        import coremltools  # noqa: F401
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt
