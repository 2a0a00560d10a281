"""The one exception type for mistakes of the person at the keyboard, and the ends by a signal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message says what was wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class DamagedModel(UserError):
    """The weights give no numbers: nothing that is asked of this model can be answered."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and not a `KeyboardInterrupt` that somebody's function raises."""


class Terminated(SystemExit):
    """A signal that ends the process, and not a `sys.exit` that somebody's function calls."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest of ``known``, or an empty string.

    ``cutoff``: how alike the two must be, from 0 to 1 (difflib's ratio).
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean '{close[0]}'?)" if close else ""
