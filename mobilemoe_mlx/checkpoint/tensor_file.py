"""The safetensors file format: read headers without trusting them, read and write tensor by tensor.

A file is 8 bytes (header length, little endian), a JSON header, the tensors' bytes without gaps.
Own code, since a damaged file must become a sentence and files larger than memory must stream.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.errors import UserError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit

# Format name -> bytes per element (the format's list of types).
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

# The types that MobileMoE checkpoints use, in the order of the format's own library.
MLX_TYPES = {
    "U8": mx.uint8,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "F32": mx.float32,
}
FORMAT_NAMES = {dtype: name for name, dtype in MLX_TYPES.items()}

# Bytes travel as integers of the same width, so that no float is ever touched.
_RAW_NUMPY = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_RAW_MLX = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}


class DamagedFile(UserError):
    """A file that is not whole, valid safetensors; `problems` lists why, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Tensor(NamedTuple):
    """A tensor that is read or computed when asked for, and not kept afterwards."""

    dtype: str  # a key of MLX_TYPES (any of ITEM_BYTES in a header that is not yet checked)
    shape: tuple[int, ...]
    read: Callable[[], mx.array]
    place: tuple[Path, int] | None = None  # file and offset of its bytes; None: not in a file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Header(NamedTuple):
    """What a file's header says."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check one file's header; no tensor is read until `Tensor.read` is called.

    Raises DamagedFile listing all that is wrong: a length beyond the file or the format's limit,
    broken JSON, unknown types, offsets that overlap, leave gaps, contradict the shapes or end
    elsewhere than the file does.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise DamagedFile([f"{path.name}: {size} bytes are too few for a safetensors file"])
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER_BYTES:
            raise DamagedFile(
                [
                    f"{path.name}: its header claims {length} bytes, above the format's limit of "
                    f"{MAX_HEADER_BYTES}: not a safetensors file"
                ]
            )
        if 8 + length > size:
            raise DamagedFile(
                [
                    f"{path.name}: truncated inside its header, which needs {8 + length} bytes "
                    f"of a file that has {size}"
                ]
            )
        text = file.read(length)
    twice: list[str] = []

    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(sorted(name for name in content if names.count(name) > 1))
        return content

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=no_twins)
    except (ValueError, RecursionError) as error:
        raise DamagedFile([f"{path.name}: its header is not valid JSON ({error})"]) from None
    if not isinstance(content, dict):
        raise DamagedFile([f"{path.name}: its header is not a JSON object"])
    problems = [f"{path.name}: '{name}' is in its header twice" for name in twice]
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        problems.append(f"{path.name}: __metadata__ is not a table of strings")
    entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for name, entry in content.items():
        if (why := _entry_problem(entry)) is not None:
            problems.append(f"{path.name}: '{name}' {why}")
        else:
            entries[name] = (entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
    if not problems:
        problems += _offset_problems(path.name, entries, size - 8 - length)
    if problems:
        raise DamagedFile(problems)
    data = 8 + length
    return Header(
        {
            name: Tensor(
                dtype, shape, _reader(path, dtype, shape, data + begin), (path, data + begin)
            )
            for name, (dtype, shape, begin, _) in entries.items()
        },
        metadata,
    )


def _entry_problem(entry: Any) -> str | None:
    if not isinstance(entry, dict) or {"dtype", "shape", "data_offsets"} - set(entry):
        return "lacks dtype, shape or data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"has the unknown dtype {dtype!r}"
    if not _whole_numbers(shape):
        return f"has the shape {shape!r}, which is not a list of sizes"
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"has the data_offsets {offsets!r}, which are not [begin, end]"
    needs, has = math.prod(shape) * ITEM_BYTES[dtype], offsets[1] - offsets[0]
    if needs != has:
        return f"has {has} bytes but its shape {shape} of {dtype} needs {needs}"
    return None


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _offset_problems(
    file: str, entries: dict[str, tuple[str, tuple[int, ...], int, int]], available: int
) -> list[str]:
    problems = []
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            problems.append(f"{file}: '{name}' {what} (begins at {begin}, expected {position})")
        position = max(position, end)
    if position > available:
        problems.append(
            f"{file}: truncated: its tensors need {position} bytes, the file has {available}. "
            "Download it again"
        )
    elif position < available:
        problems.append(f"{file}: {available - position} bytes follow its last tensor")
    return problems


def _reader(path: Path, dtype: str, shape: tuple[int, ...], offset: int) -> Callable[[], mx.array]:
    def read() -> mx.array:
        count = math.prod(shape)
        raw = np.fromfile(path, _RAW_NUMPY[ITEM_BYTES[dtype]], count, offset=offset)
        if raw.size != count:
            raise DamagedFile([f"{path.name}: became shorter while it was read"])
        return mx.array(raw.reshape(shape)).view(MLX_TYPES[dtype])

    return read


def from_array(array: mx.array) -> Tensor:
    """A `Tensor` of an array in memory; its dtype must be among MLX_TYPES."""
    return Tensor(FORMAT_NAMES[array.dtype], tuple(array.shape), lambda: array)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file, holding one tensor at a time.

    Byte for byte what the format's own library writes. Raises OSError when the disk is full; the
    caller removes what was begun.
    """
    with path.open("wb") as file:
        file.write(encode_header(tensors, metadata))
        for name in _file_order(tensors):
            tensor = tensors[name]
            array = tensor.read()
            if array.dtype != MLX_TYPES[tensor.dtype] or tuple(array.shape) != tensor.shape:
                raise ValueError(
                    f"{name}: announced as {tensor.dtype} {tensor.shape}, "
                    f"is {array.dtype} {tuple(array.shape)}"
                )
            raw = np.asarray(array.view(_RAW_MLX[ITEM_BYTES[tensor.dtype]]))
            file.write(np.ascontiguousarray(raw).data)
            del array, raw


def encode_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file: the header's length and the header, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in _file_order(tensors):
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    # The library's order: widest type first, which aligns every tensor, then by name.
    rank = {dtype: -place for place, dtype in enumerate(MLX_TYPES)}
    return sorted(tensors, key=lambda name: (rank[tensors[name].dtype], name))


def plan_shards(
    tensors: Mapping[str, Tensor], max_shard_bytes: int
) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors, in the given order, each file at most `max_shard_bytes` of tensors
    (a single tensor above that has a file of its own); one file is named model.safetensors."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    total = len(shards)
    return {
        f"model-{number:05d}-of-{total:05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }
