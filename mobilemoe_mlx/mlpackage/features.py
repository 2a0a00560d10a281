"""Inputs, outputs and states as a model's description declares them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.proto import FeatureTypes_pb2

from mobilemoe_mlx.mlpackage.strict import UnknownContent, only

_DTYPES = {
    number: name.lower() for name, number in FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.items()
}


@dataclass(frozen=True)
class Feature:
    """An input, output or state: its type, its shape, and the least shape that a call may have.

    The two shapes differ in sizes that each call chooses.
    """

    dtype: str  # "int32", "float16", "float32", ...
    shape: tuple[int, ...]
    least: tuple[int, ...]

    @property
    def pattern(self) -> tuple[int, ...]:
        """The shape, with -1 for a size that each call chooses."""
        pairs = zip(self.least, self.shape, strict=True)
        return tuple(least if least == most else -1 for least, most in pairs)

    def takes(self, array: np.ndarray) -> bool:
        """Whether `array` has this type and an allowed shape."""
        return (
            array.dtype.name == self.dtype
            and array.ndim == len(self.shape)
            and all(
                least <= size <= most
                for size, least, most in zip(array.shape, self.least, self.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        pairs = zip(self.least, self.shape, strict=True)
        sizes = (f"{least}..{most}" if least != most else str(most) for least, most in pairs)
        return f"{self.dtype} [{', '.join(sizes)}]"


def read_features(protos: Iterable[Any], *, fixed: bool = False) -> dict[str, Feature]:
    """Repeated `FeatureDescription` messages by their names.

    `fixed`: no size may be left to the calls. Raises UnknownContent for a feature that is no array
    or state of a known type, one that is optional or has a default, sizes that contradict each
    other, and a name that comes twice.
    """
    found: dict[str, Feature] = {}
    for proto in protos:
        if proto.name in found:
            raise UnknownContent(f"'{proto.name}' is declared twice")
        found[proto.name] = _feature(proto, f"'{proto.name}'", fixed)
    return found


def _feature(proto: Any, where: str, fixed: bool) -> Feature:
    only(proto, where, "name", "shortDescription", "type")
    only(proto.type, where, "multiArrayType", "stateType")
    is_state = proto.type.WhichOneof("Type") == "stateType"
    array = proto.type.stateType.arrayType if is_state else proto.type.multiArrayType
    only(array, where, "shape", "dataType", *(() if fixed else ("shapeRange",)))
    if array.dataType not in _DTYPES:
        raise UnknownContent(f"{where} has the type {array.dataType}")
    ranges = tuple((r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges)
    ranges = ranges or tuple((size, size) for size in array.shape)
    if any(not 1 <= low <= high for low, high in ranges):
        raise UnknownContent(f"{where} has the sizes {ranges}")
    if list(array.shape) != [low for low, _ in ranges]:
        raise UnknownContent(f"{where} has the shape {list(array.shape)} beside {ranges}")
    least, most = ([pair[end] for pair in ranges] for end in (0, 1))
    return Feature(_DTYPES[array.dataType], tuple(most), tuple(least))
