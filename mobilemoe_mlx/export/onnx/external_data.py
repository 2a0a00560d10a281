"""The file of weights beside an ONNX model, written one tensor at a time."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

# ONNX Runtime maps the file; a tensor begins at a line of the processor's cache.
_ALIGNMENT = 64

TYPES = {
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.float32): TensorProto.FLOAT,
}


class ExternalData:
    """A file that tensors are appended to; close it when all are written."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("wb")

    def add(self, name: str, arrays: list[np.ndarray], shape: tuple[int, ...]) -> TensorProto:
        """Write `arrays`, which have one dtype, one after the other as the tensor `name`."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        for array in arrays:
            self._file.write(np.ascontiguousarray(array).data)
        dtype = arrays[0].dtype
        length = self._file.tell() - offset
        if length != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: {length} bytes are not {shape} of {dtype}")
        return self._tensor(name, TYPES[dtype], shape, offset, length)

    def again(self, tensor: TensorProto, name: str, shape: tuple[int, ...]) -> TensorProto:
        """The bytes of `tensor` under another name and shape."""
        place = {entry.key: int(entry.value) for entry in tensor.external_data[1:]}
        return self._tensor(name, tensor.data_type, shape, place["offset"], place["length"])

    def close(self) -> None:
        """Flush what was written to the disk."""
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())

    def _tensor(
        self, name: str, data_type: int, shape: tuple[int, ...], offset: int, length: int
    ) -> TensorProto:
        tensor = TensorProto(name=name, data_type=data_type, dims=shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self._name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor
