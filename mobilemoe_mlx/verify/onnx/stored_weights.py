"""The weights that a graph names, read from the file beside it and from the graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.onnx_folder.folder import MODEL, WEIGHTS


class StoredWeights:
    """Initializers by name; small constants of the graph's own (`constant_N`) are left out."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._path = folder / WEIGHTS
        self._tensors = {
            tensor.name: tensor
            for tensor in model.graph.initializer
            if tensor.data_location == TensorProto.EXTERNAL
            or not tensor.name.startswith("constant_")
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the graph gives it."""
        return tuple(self._tensors[name].dims)

    def dtype(self, name: str) -> np.dtype:
        """The type that the graph gives it."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self._tensors[name].data_type))

    def read(self, name: str) -> np.ndarray:
        """Its bytes, uint8; raises UserError where the file has not so many."""
        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.frombuffer(numpy_helper.to_array(tensor).tobytes(), np.uint8)
        place = {entry.key: entry.value for entry in tensor.external_data}
        try:
            offset, length = int(place["offset"]), int(place["length"])
            file = place["location"]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{self._path.with_name(MODEL)} is damaged: where {name} is stored cannot be read "
                f"({error!r}). Export again."
            ) from None
        inside = min(offset, length) >= 0 and offset + length <= self._path.stat().st_size
        if file != self._path.name or not inside:
            raise UserError(f"{self._path} does not have the {length} bytes of {name}.")
        return np.fromfile(self._path, np.uint8, length, offset=offset)
