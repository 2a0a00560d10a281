"""Core ML's weight.bin: constants, one blob each, read in place and never as a whole.

64 bytes of header (count of blobs u32, version u32, zeros), then for each blob 64 bytes of metadata
(sentinel u32, type u32, bytes u64, offset of the data u64, padding bits u64, zeros) and its data;
metadata and data begin at multiples of 64, little endian. A program refers to a blob by the offset
of its metadata. This reader shares no code with coremltools' writer, so that neither hides the
other's mistakes.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mobilemoe_mlx.errors import UserError

ALIGNMENT = 64
VERSION = 2
SENTINEL = 0xDEADBEEF


class _Format(NamedTuple):
    name: str  # as MIL programs name it
    bits: int  # per element
    numpy: np.dtype  # of the elements that `WeightFile.read` returns


# Type number in the file -> what it means. Source: coremltools' own writer, one type at a time.
_FORMATS = {
    1: _Format("float16", 16, np.dtype(np.float16)),
    2: _Format("float32", 32, np.dtype(np.float32)),
    3: _Format("uint8", 8, np.dtype(np.uint8)),
    4: _Format("int8", 8, np.dtype(np.int8)),
    6: _Format("int16", 16, np.dtype(np.int16)),
    7: _Format("uint16", 16, np.dtype(np.uint16)),
    8: _Format("int4", 4, np.dtype(np.int8)),
    11: _Format("uint4", 4, np.dtype(np.uint8)),
    14: _Format("int32", 32, np.dtype(np.int32)),
    15: _Format("uint32", 32, np.dtype(np.uint32)),
}
_BY_NAME = {form.name: form for form in _FORMATS.values()}


class Blob(NamedTuple):
    """One constant of the file."""

    offset: int  # of its metadata, which is what programs refer to
    data_offset: int
    dtype: str  # "float16", "int4", ...
    nbytes: int  # of its data
    elements: int


class WeightFile:
    """A weight.bin; every read is a view of the mapped file, except for 4-bit types.

    Raises UserError for a file that is too short, has another version or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; export the package again.") from None
        if size < ALIGNMENT:
            raise self._damaged(f"{size} bytes are too few for a file of weights")
        self._bytes: Any = np.asarray(np.memmap(path, np.uint8, mode="r"))
        self.blob_count, version, *zeros = self._numbers("<II7Q", 0)
        if version != VERSION or any(zeros):
            raise self._damaged(f"its header is not that of version {VERSION}")

    def blob(self, offset: int) -> Blob:
        """The blob whose metadata begins at byte `offset`."""
        if offset % ALIGNMENT or not ALIGNMENT <= offset <= self._bytes.size - ALIGNMENT:
            raise self._damaged(f"byte {offset} cannot be the place of a blob's metadata")
        sentinel, code, nbytes, data, padding, *zeros = self._numbers("<IIQQQ4Q", offset)
        if sentinel != SENTINEL or any(zeros):
            raise self._damaged(f"no blob's metadata is at byte {offset}")
        if code not in _FORMATS:
            raise self._damaged(f"the blob at byte {offset} has the unknown type {code}")
        if data % ALIGNMENT or data < offset + ALIGNMENT or data + nbytes > self._bytes.size:
            raise self._damaged(
                f"the blob at byte {offset} claims the bytes {data} to {data + nbytes}, "
                f"of a file of {self._bytes.size}"
            )
        form = _FORMATS[code]
        count, rest = divmod(8 * nbytes - padding, form.bits)
        if rest or not 0 <= padding < 8:
            raise self._damaged(
                f"the blob at byte {offset} has {nbytes} bytes and {padding} bits of padding, "
                f"which is no whole number of {form.name}"
            )
        return Blob(offset, data, form.name, nbytes, count)

    def blobs(self) -> list[Blob]:
        """All blobs in the order of the file.

        Walks the file from end to end and raises UserError unless each byte belongs to the header,
        to a blob's metadata or data, or is a zero between them.
        """
        found: list[Blob] = []
        position = ALIGNMENT
        for _ in range(self.blob_count):
            blob = self.blob(position)
            if blob.data_offset != position + ALIGNMENT:
                raise self._damaged(f"the blob at byte {position} has its data elsewhere")
            found.append(blob)
            end = blob.data_offset + blob.nbytes
            position = -(-end // ALIGNMENT) * ALIGNMENT
            if self._bytes[end:position].any():
                raise self._damaged(f"there are bytes that belong to no blob at byte {end}")
        if position < self._bytes.size:
            raise self._damaged(f"there are bytes that belong to no blob at byte {position}")
        return found

    def raw(self, offset: int) -> np.ndarray:
        """The bytes of the blob at `offset` as they lie in the file: uint8 [bytes]."""
        blob = self.blob(offset)
        return self._bytes[blob.data_offset : blob.data_offset + blob.nbytes]

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The blob at `offset`, which must hold `shape` elements of `dtype` (a MIL type's name).

        int4 and uint4 are unpacked into int8 and uint8, low nibble first. Read-only.
        """
        blob = self.blob(offset)
        if blob.dtype != dtype or blob.elements != math.prod(shape):
            raise self._damaged(
                f"the blob at byte {offset} holds {blob.elements} {blob.dtype}, "
                f"but the program expects {dtype} {list(shape)}"
            )
        form = _BY_NAME[dtype]
        raw = self.raw(offset)
        values = (
            unpack_nibbles(raw, blob.elements, dtype) if form.bits == 4 else raw.view(form.numpy)
        )
        values = values.reshape(shape)
        values.flags.writeable = False
        return values

    def _numbers(self, layout: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(layout, self._bytes, offset)

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.path}: {why}; export the package again.")


def unpack_nibbles(raw: np.ndarray, count: int, dtype: str) -> np.ndarray:
    """The first `count` nibbles of uint8 bytes, low nibble first: int8 for int4, else uint8."""
    numbers = raw.view(_BY_NAME[dtype].numpy)
    out = np.empty(2 * raw.size, numbers.dtype)
    np.right_shift(np.left_shift(numbers, 4), 4, out=out[0::2])  # arithmetic for int8
    np.right_shift(numbers, 4, out=out[1::2])
    return out[:count]
