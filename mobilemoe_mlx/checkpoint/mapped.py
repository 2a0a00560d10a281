"""A checkpoint's tensors as numpy arrays that lie in a memory map of its files."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.checkpoint.tensor_file import Tensor
from mobilemoe_mlx.errors import UserError

# numpy has no bfloat16: its bits, as uint16.
_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "U8": np.uint8,
    "F16": np.float16,
    "BF16": np.uint16,
    "F32": np.float32,
}


class MappedTensors:
    """Tensors, read-only and without a copy; those that must be computed are in memory."""

    arrays: dict[str, np.ndarray]  # in the stored types, bfloat16 as uint16

    def __init__(self, tensors: Mapping[str, Tensor], *, large_pages: bool = True) -> None:
        """`large_pages`: faster where all of the files is used; else they bring in what is not.

        Raises OSError for a file that cannot be mapped, UserError for one that is too short.
        """
        self._large_pages = large_pages
        self._maps: dict[Path, mmap.mmap] = {}
        self.arrays = {name: self._array(tensor) for name, tensor in tensors.items()}

    def check(self) -> None:
        """Raise UserError when a file has become shorter, so that reading it would be fatal."""
        for path, content in self._maps.items():
            if content.size() < len(content):
                raise UserError(
                    f"{path} became shorter while it was in use: {content.size():,} of "
                    f"{len(content):,} bytes are left. Copy the checkpoint again, and load it anew."
                )

    def _array(self, tensor: Tensor) -> np.ndarray:
        dtype = _NUMPY_TYPES[tensor.dtype]
        if tensor.place is None:
            array = tensor.read()
            return np.array(array.view(mx.uint16) if tensor.dtype == "BF16" else array)
        path, offset = tensor.place
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = _map(file.fileno(), self._large_pages)
        content = self._maps[path]
        if offset + tensor.nbytes > len(content):
            raise UserError(f"{path} became shorter while it was read.")
        count = tensor.nbytes // np.dtype(dtype).itemsize
        return np.frombuffer(content, dtype, count, offset).reshape(tensor.shape)


def _map(file: int, large_pages: bool) -> mmap.mmap:
    content = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    # With pages of 2 MB, decoding is 15 % faster, and so is reading from the disk, where Linux has
    # them for files. What lies in the page cache already stays as it is.
    if large_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            content.madvise(mmap.MADV_HUGEPAGE)
    return content
