"""A checkpoint's tensors as initializers of a graph, their bytes in the file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import GROUP_SIZE
from mobilemoe_mlx.export.int4_source import to_numpy
from mobilemoe_mlx.export.onnx.external_data import ExternalData
from mobilemoe_mlx.export.onnx.graph import Graph

# Flips the top bit of both nibbles: a code of two's complement becomes code + 8, which is how
# ONNX Runtime's operators hold INT4.
OFFSET_BINARY = np.uint8(0x88)


class Int4(NamedTuple):
    """Names of codes and scales in a graph."""

    codes: str
    scales: str


class Weights:
    """Reads tensors of an INT4 checkpoint (published layout), one at a time."""

    def __init__(self, checkpoint: Checkpoint, graph: Graph, data: ExternalData) -> None:
        self.args = checkpoint.args
        self.added_errors: dict[str, float] = {}  # of experts that were rounded a second time
        self._tensors = checkpoint.tensors
        self._graph = graph
        self._data = data

    def linear(self, name: str, modules: Sequence[str]) -> Int4:
        """The linears `modules`, their outputs one after the other, as `MatMulNBits` takes them.

        Codes uint8 [out, in / 32, 16], offset binary; scales float16 [out, in / 32].
        """
        codes = [self.read(f"{m}.qweight") ^ OFFSET_BINARY for m in modules]
        scales = [self.read(f"{m}.weight_scale") for m in modules]
        rows = sum(len(array) for array in codes)
        groups = scales[0].shape[1]
        return Int4(
            self.put(f"{name}.qweight", codes, (rows, groups, GROUP_SIZE // 2)),
            self.put(f"{name}.weight_scale", scales, (rows, groups)),
        )

    def unchanged(self, name: str) -> str:
        """The tensor `name` with the checkpoint's bytes and shape: codes or scales."""
        return self.put(name, [array := self.read(name)], array.shape)

    def offset_binary(self, name: str) -> str:
        """The codes `name` in the checkpoint's shape, each + 8."""
        return self.put(name, [array := self.read(name) ^ OFFSET_BINARY], array.shape)

    def float32(self, name: str) -> str:
        """The tensor `name`, of float32 or bfloat16, as float32, which is exact."""
        return self.put(name, [array := self.read(name)], array.shape)

    def again(self, initializer: str, name: str, shape: tuple[int, ...]) -> str:
        """The bytes of an initializer under another name and shape, which take no space."""
        (tensor,) = (t for t in self._graph.initializers if t.name == initializer)
        return self._initializer(self._data.again(tensor, name, shape))

    def put(self, name: str, arrays: list[np.ndarray], shape: tuple[int, ...]) -> str:
        """`arrays` one after the other as the initializer `name`."""
        return self._initializer(self._data.add(name, arrays, shape))

    def read(self, name: str) -> np.ndarray:
        """The checkpoint's tensor; bfloat16 is widened to float32."""
        return to_numpy(self._tensors[name])

    def _initializer(self, tensor: TensorProto) -> str:
        self._graph.initializers.append(tensor)
        return str(tensor.name)
