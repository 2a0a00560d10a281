"""Phones as two numbers each: how fast they read weights, and how fast they attend.

A decoded token takes (bytes of weights read) / bandwidth + (FLOPs of attention) / rate. Both are
what a runtime reaches, not what a data sheet says. A device's file (devices/NAME.toml, or one of
your own) has them as `bandwidth` and `attention_flops`, or has measured speeds in `decode`, from
which they are fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from mobilemoe_mlx import files, tables
from mobilemoe_mlx.accounting.architecture import Architecture
from mobilemoe_mlx.accounting.cost import attention_flops, weight_bytes_read
from mobilemoe_mlx.accounting.published import published_models
from mobilemoe_mlx.errors import UserError, did_you_mean

_FOLDER = Path(__file__).with_name("devices")


@dataclass(frozen=True)
class Decode:
    """One measured speed."""

    model: tables.Text  # a name of accounting/published.toml, in INT4
    context: tables.Count  # tokens in the cache
    tokens_per_second: Annotated[float, tables.Bounds(least=1e-3, most=1e6)]


@dataclass(frozen=True)
class _File:
    name: tables.Text
    # Bytes and operations per second. Beyond the bounds another unit was meant, like GB.
    bandwidth: Annotated[float, tables.Bounds(least=1e6, most=1e15)] | None = None
    attention_flops: Annotated[float, tables.Bounds(least=1e6, most=1e18)] | None = None
    decode: tuple[Decode, ...] = ()


@dataclass(frozen=True)
class Device:
    """What decoding on a device rests on."""

    name: str
    bandwidth: float  # bytes of weights per second
    attention_flops: float  # per second

    def seconds_per_token(self, model: Architecture, context: int, *, quantized: bool) -> float:
        """The time of one decoded token with `context` tokens in the cache."""
        read = weight_bytes_read(model, quantized=quantized)
        return read / self.bandwidth + attention_flops(model, context) / self.attention_flops


def device_names() -> list[str]:
    """The devices that are known by name."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def read_device(name: str) -> Device:
    """A device by its name, or by the path of a TOML file.

    Raises UserError for a name that is neither, and for a file that says too little or nonsense.
    """
    path = _FOLDER / f"{name}.toml"
    if name not in device_names():
        path = files.user_path(name)
        if not path.is_file():
            raise UserError(
                f"There is no device '{name}'{did_you_mean(name, device_names())}, and no file of "
                f"that name. Devices: {', '.join(device_names())}."
            )
    file = tables.read(_File, files.read_toml(path), str(path))
    if file.bandwidth is not None and file.attention_flops is not None:
        return Device(file.name, file.bandwidth, file.attention_flops)
    return _fitted(file, path)


def _fitted(file: _File, path: Path) -> Device:
    """The two numbers with the least squares of relative errors in the time of a token."""
    known = published_models()
    for each in file.decode:
        if each.model not in known:
            raise UserError(
                f"{path}: decode has the model '{each.model}'{did_you_mean(each.model, known)}; "
                f"known: {', '.join(known)}."
            )
    relative = np.array(
        [
            (
                weight_bytes_read(known[each.model].architecture, quantized=True),
                attention_flops(known[each.model].architecture, each.context),
            )
            for each in file.decode
        ],
        float,
    ).reshape(-1, 2) * np.array([[each.tokens_per_second] for each in file.decode]).reshape(-1, 1)
    if len(relative) < 2 or np.linalg.matrix_rank(relative / relative.max(axis=0)) < 2:
        raise UserError(
            f"{path}: it needs bandwidth and attention_flops, or decode with measured speeds at "
            "two contexts at least."
        )
    seconds, *_ = np.linalg.lstsq(relative, np.ones(len(relative)), rcond=None)
    if not np.all(seconds > 0):
        raise UserError(f"{path}: the speeds in decode do not fall with the context: check them.")
    return Device(file.name, float(1 / seconds[0]), float(1 / seconds[1]))
