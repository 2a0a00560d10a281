"""The CPU kernel as operators of ONNX Runtime: a library, built with the package."""

from __future__ import annotations

import sys
from pathlib import Path

from mobilemoe_mlx.cpu_kernel.not_built import not_built

DOMAIN = "mobilemoe"
_PATH = Path(__file__).with_name(
    "libmobilemoe_ort.dylib" if sys.platform == "darwin" else "libmobilemoe_ort.so"
)


def library_path() -> Path:
    """The library for `SessionOptions.register_custom_ops_library`.

    Raises UserError, saying what to install, where it was not built.
    """
    if not _PATH.is_file():
        raise not_built(
            "The operators for ONNX Runtime are not there: their library",
            "Or use a form of folder that needs none: `--form portable`.",
        )
    return _PATH
