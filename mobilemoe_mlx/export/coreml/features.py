"""Inputs, outputs and states as a model's description declares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coremltools.proto import FeatureTypes_pb2

_DTYPES = {
    FeatureTypes_pb2.ArrayFeatureType.INT32: "int32",
    FeatureTypes_pb2.ArrayFeatureType.FLOAT16: "float16",
    FeatureTypes_pb2.ArrayFeatureType.FLOAT32: "float32",
}


@dataclass(frozen=True)
class Feature:
    """An input, output or state: its type, its shape, and the least shape that a call may have.

    The two shapes differ in sizes that each call chooses.
    """

    dtype: str
    shape: tuple[int, ...]
    least: tuple[int, ...]

    def __str__(self) -> str:
        pairs = zip(self.least, self.shape, strict=True)
        sizes = (f"{least}..{most}" if least != most else str(most) for least, most in pairs)
        return f"{self.dtype} [{', '.join(sizes)}]"


def describe_features(features: Any) -> dict[str, Feature]:
    """Repeated `FeatureDescription` messages by their names."""
    return {feature.name: _feature(feature.type) for feature in features}


def _feature(kind: Any) -> Feature:
    is_state = kind.WhichOneof("Type") == "stateType"
    array = kind.stateType.arrayType if is_state else kind.multiArrayType
    ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    least, shape = zip(*ranges or [(n, n) for n in array.shape], strict=True)
    return Feature(_DTYPES.get(array.dataType, str(array.dataType)), shape, least)
