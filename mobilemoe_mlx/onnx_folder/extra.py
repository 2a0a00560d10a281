"""The packages of the extra `onnx`, or what to do where they are absent or too old."""

from __future__ import annotations

import importlib
import re
from typing import Any

from mobilemoe_mlx.errors import UserError

_INSTALL = "`pip install --editable '.[onnx]'` in the checkout"


def need(*modules: str) -> None:
    """Import `modules` of the extra; raises UserError where one is not installed."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"ONNX needs the package {name.replace('_', '-')} ({error}): {_INSTALL}."
            ) from None


def onnx_runtime(oldest: str, what: str) -> Any:
    """The module `onnxruntime`; raises UserError where it is older than `what` needs."""
    need("onnxruntime")
    import onnxruntime

    if _numbers(onnxruntime.__version__) < _numbers(oldest):
        raise UserError(
            f"{what} needs ONNX Runtime {oldest} or later, and {onnxruntime.__version__} is "
            f"installed: pip install --upgrade onnxruntime."
        )
    return onnxruntime


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
