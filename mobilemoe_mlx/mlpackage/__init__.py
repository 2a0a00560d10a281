"""A saved .mlpackage of any kind of model: where its model file lies, and what its features are."""

import logging
import signal
import threading
from types import FrameType

# Off macOS coremltools warns at every import that it cannot run models; nothing here runs any. Each
# room that imports coremltools imports this one first.
logging.getLogger("coremltools").setLevel(logging.ERROR)


def _import_coremltools() -> None:
    """Import it with Ctrl-C put off to the end.

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


_import_coremltools()
