"""weight.bin: what coremltools writes is read back, byte for byte, and damage is noticed."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from coremltools.converters.mil.mil.types import np_int4_dtype, np_uint4_dtype
from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.mil.weight_file import ALIGNMENT, WeightFile

# MIL type -> (numpy type, both ends of its range, name in coremltools' writer and reader).
STORED = {
    "float16": (np.float16, (-65504, 65504), "fp16"),
    "float32": (np.float32, (-3e38, 3e38), "float"),
    "int8": (np.int8, (-128, 127), "int8"),
    "uint8": (np.uint8, (0, 255), "uint8"),
    "int16": (np.int16, (-(2**15), 2**15 - 1), "int16"),
    "uint16": (np.uint16, (0, 2**16 - 1), "uint16"),
    "int32": (np.int32, (-(2**31), 2**31 - 1), "int32"),
    "uint32": (np.uint32, (0, 2**32 - 1), "uint32"),
    "int4": (np.int8, (-8, 7), "int4"),
    "uint4": (np.uint8, (0, 15), "uint4"),
}
FOUR_BIT = {"int4": np_int4_dtype, "uint4": np_uint4_dtype}
COUNTS = (1, 7, 64, 129)  # odd ones leave half a byte of 4-bit types, most end unaligned


def values(dtype: str, count: int) -> np.ndarray:
    numpy_type, (low, high), _ = STORED[dtype]
    rng = np.random.default_rng(count)
    if np.issubdtype(numpy_type, np.floating):
        array = (rng.standard_normal(count) * 100).astype(numpy_type)
    else:
        array = rng.integers(low, high, count, endpoint=True).astype(numpy_type)
    array[0], array[-1] = low, high
    return array


def write(path: Path, arrays: list[tuple[str, np.ndarray]]) -> list[int]:
    """Write blobs with coremltools; the places that it gives them."""
    writer = _BlobStorageWriter(str(path))
    places = []
    for dtype, array in arrays:
        if dtype == "float16":
            array = array.view(np.uint16)
        elif dtype in FOUR_BIT:
            array = array.astype(FOUR_BIT[dtype])
        places.append(getattr(writer, f"write_{STORED[dtype][2]}_data")(array))
    del writer  # closes the file
    return places


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, list[tuple[str, np.ndarray]], list[int]]:
    arrays = [(dtype, values(dtype, count)) for count in COUNTS for dtype in STORED]
    path = tmp_path / "weight.bin"
    return path, arrays, write(path, arrays)


def test_reads_what_coremltools_wrote(stored) -> None:
    path, arrays, places = stored
    weights = WeightFile(path)
    reader = _BlobStorageReader(str(path))
    for (dtype, array), place in zip(arrays, places, strict=True):
        read = weights.read(place, dtype, array.shape)
        assert read.dtype == STORED[dtype][0]
        np.testing.assert_array_equal(read, array)
        theirs = np.asarray(getattr(reader, f"read_{STORED[dtype][2]}_data")(place))
        theirs = theirs.view(np.float16) if dtype == "float16" else theirs.astype(read.dtype)
        np.testing.assert_array_equal(read, theirs)


def test_nibbles_lie_low_first_in_two_s_complement(tmp_path: Path) -> None:
    codes = np.arange(-8, 8, dtype=np.int8)
    (place,) = write(tmp_path / "weight.bin", [("int4", codes)])
    pairs = (codes.astype(int) % 16).reshape(-1, 2)
    expected = bytes(low + 16 * high for low, high in pairs)
    assert WeightFile(tmp_path / "weight.bin").raw(place).tobytes() == expected


def test_raw_bytes_are_those_of_the_file(stored) -> None:
    path, arrays, places = stored
    content = path.read_bytes()
    weights = WeightFile(path)
    for (dtype, array), place in zip(arrays, places, strict=True):
        raw = weights.raw(place).tobytes()
        assert content[place + ALIGNMENT :].startswith(raw)
        if dtype not in FOUR_BIT:
            assert raw == array.tobytes()


def test_the_blobs_account_for_every_byte(stored) -> None:
    path, arrays, places = stored
    blobs = WeightFile(path).blobs()
    assert [b.offset for b in blobs] == places
    assert [(b.dtype, b.elements) for b in blobs] == [(d, a.size) for d, a in arrays]
    content = bytearray(path.read_bytes())
    for start, size in [(0, ALIGNMENT), *((b.offset, ALIGNMENT) for b in blobs)]:
        content[start : start + size] = bytes(size)
    for blob in blobs:
        content[blob.data_offset : blob.data_offset + blob.nbytes] = bytes(blob.nbytes)
    assert not any(content)


def test_blobs_are_views_of_the_file_and_cannot_be_written(stored) -> None:
    path, arrays, places = stored
    weights = WeightFile(path)
    for (dtype, array), place in zip(arrays, places, strict=True):
        read = weights.read(place, dtype, array.shape)
        assert np.shares_memory(read, weights.raw(place)) == (dtype not in FOUR_BIT)
        with pytest.raises(ValueError, match="read-only"):
            read[0] = 1


def test_the_program_s_type_and_shape_must_be_those_of_the_blob(tmp_path: Path) -> None:
    (place,) = write(tmp_path / "weight.bin", [("int8", values("int8", 12))])
    weights = WeightFile(tmp_path / "weight.bin")
    assert weights.read(place, "int8", (3, 4)).shape == (3, 4)
    for dtype, shape in (("uint8", (12,)), ("int8", (3, 3)), ("int4", (24,)), ("float16", (6,))):
        with pytest.raises(UserError, match=re.escape(f"expects {dtype} {list(shape)}")):
            weights.read(place, dtype, shape)


def _two_blobs(path: Path) -> tuple[list[int], bytearray]:
    places = write(path, [("int8", values("int8", 7)), ("float16", values("float16", 33))])
    return places, bytearray(path.read_bytes())


@pytest.mark.parametrize(
    ("field", "where", "number"),
    [
        ("version", 4, struct.pack("<I", 3)),
        ("header's zeros", 24, b"\x01"),
        ("sentinel", ALIGNMENT, b"\x00"),
        ("type", ALIGNMENT + 4, struct.pack("<I", 99)),
        ("size", ALIGNMENT + 8, struct.pack("<Q", 2**40)),
        ("place of the data, inside", ALIGNMENT + 16, struct.pack("<Q", 192)),
        ("place of the data, unaligned", ALIGNMENT + 16, struct.pack("<Q", 129)),
        ("place of the data, before", ALIGNMENT + 16, struct.pack("<Q", 64)),
        ("padding bits", ALIGNMENT + 24, struct.pack("<Q", 4)),
        ("metadata's zeros", ALIGNMENT + 40, b"\x01"),
        ("count, fewer", 0, struct.pack("<I", 1)),
        ("count, more", 0, struct.pack("<I", 3)),
        ("gap", 2 * ALIGNMENT + 7, b"\x01"),
    ],
)
def test_damage_anywhere_is_noticed(tmp_path: Path, field: str, where: int, number: bytes) -> None:
    path = tmp_path / "weight.bin"
    _, content = _two_blobs(path)
    WeightFile(path).blobs()
    content[where : where + len(number)] = number
    path.write_bytes(content)
    with pytest.raises(UserError, match="export the package again"):
        WeightFile(path).blobs()


def test_a_file_cut_short_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    places, content = _two_blobs(path)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="export the package again"):
            WeightFile(path).blobs()
    path.write_bytes(content[:-1])
    weights = WeightFile(path)
    weights.read(places[0], "int8", (7,))  # whole, as far as it goes
    with pytest.raises(UserError, match="of a file of"):
        weights.raw(places[1])


def test_bytes_at_the_end_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    _, content = _two_blobs(path)
    path.write_bytes(bytes(content) + bytes(ALIGNMENT))
    with pytest.raises(UserError, match="belong to no blob"):
        WeightFile(path).blobs()


def test_a_place_that_is_no_blob_s_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    places, _ = _two_blobs(path)
    weights = WeightFile(path)
    for place in (0, 1, places[0] + 1, places[0] + ALIGNMENT, places[1] + 4096, 2**60):
        with pytest.raises(UserError, match=f"{place}"):
            weights.raw(place)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        WeightFile(tmp_path / "weight.bin")
