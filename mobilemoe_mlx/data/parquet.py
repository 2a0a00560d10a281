"""Parquet: the wanted columns of a file, written once as Arrow and read by row from there.

A row of a parquet file cannot be had without decoding its whole row group, and training reads rows
in random order; in an Arrow file a row is where it is. It lies in the cache of `datasets`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from mobilemoe_mlx import files
from mobilemoe_mlx.data.absent_keys import without_absent_keys
from mobilemoe_mlx.errors import UserError, did_you_mean


class ParquetFile:
    """The columns `fields` of a .parquet file; `sha256` is of the file, in hexadecimal digits.

    Raises UserError naming the file when it is damaged or lacks a column, or when the cache of
    `datasets` (`HF_DATASETS_CACHE`) cannot hold the rows.
    """

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self.path = path
        self.sha256 = files.sha256(path)
        key = hashlib.sha256(json.dumps([self.sha256, *fields]).encode()).hexdigest()
        cached = Path(datasets.config.HF_DATASETS_CACHE) / "mobilemoe" / f"{key}.arrow"
        try:
            if not cached.exists():
                _convert(path, list(fields), cached)
            reader = pa.ipc.open_file(pa.memory_map(str(cached)))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: {error}") from None
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def where(self, index: int) -> str:
        """The row's place for messages; rows are counted from 1."""
        return f"row {index + 1} of {self.path}"

    def read(self, index: int) -> dict[str, Any]:
        """The row `index`, counted from 0."""
        number = bisect_right(self._ends, index)
        inside = index - (self._ends[number - 1] if number else 0)
        row: dict[str, Any] = without_absent_keys(
            self._batches[number].slice(inside, 1).to_pylist()[0]
        )
        return row


def column_names(path: Path) -> list[str]:
    """The columns of a .parquet file; raises UserError naming the file when it is damaged."""
    try:
        with pq.ParquetFile(path) as file:
            return list(file.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from None


def _convert(path: Path, fields: list[str], target: Path) -> None:
    """Write the columns to `target`, whole or not at all."""
    with pq.ParquetFile(path) as source:
        names = source.schema_arrow.names
        for field in fields:
            if field not in names:
                hint = did_you_mean(field, names)
                raise UserError(
                    f"{path} has no field '{field}'{hint}; its fields are {', '.join(names)}"
                )
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent)
        os.close(handle)
        try:
            writer = None
            for batch in source.iter_batches(columns=fields):
                table = pa.Table.from_batches([batch]).select(fields)
                for i, column in enumerate(table.columns):
                    if pa.types.is_dictionary(column.type):
                        table = table.set_column(i, fields[i], column.cast(column.type.value_type))
                writer = writer or pa.ipc.new_file(temporary, table.schema)
                writer.write_table(table)
            writer = writer or pa.ipc.new_file(temporary, pa.schema([]))
            writer.close()
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
