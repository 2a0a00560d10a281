"""What to say where a library of the kernel was not built with the package."""

from __future__ import annotations

import sys

from mobilemoe_mlx.errors import UserError

BUILD_AGAIN = "`pip install --force-reinstall --no-deps .` in the checkout"


def not_built(what: str, instead: str) -> UserError:
    """The error whose sentence begins with `what` ("... its library") and ends with `instead`."""
    compiler = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
    return UserError(
        f"{what} is built when mobilemoe-mlx is installed, if there is a C++ compiler then. "
        f"Install one ({compiler}) if you have none, then the package again: {BUILD_AGAIN}. "
        f"{instead}"
    )
