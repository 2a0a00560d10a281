"""The kernel's lock of an open file or folder, by which processes keep out of one another's way."""

from __future__ import annotations

import fcntl


def take_lock(held: int, *, wait: bool = False) -> bool:
    """Lock what the file descriptor `held` is open on; False where another process has it locked.

    `wait`: until that one ends. The lock ends when `held` is closed or the process ends, however
    that ends. On a file system without locks everyone has it: work goes on there, unprotected.
    """
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
