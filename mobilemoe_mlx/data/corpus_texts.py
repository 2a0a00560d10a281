"""The texts of files and folders, to train a tokenizer on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.data.json_lines import BadRecord, read_json_lines
from mobilemoe_mlx.data.records import message_text
from mobilemoe_mlx.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".py")
CORPUS_SUFFIXES = (".jsonl", ".parquet", *TEXT_SUFFIXES)


def corpus_texts(path: str | Path) -> Iterator[str]:
    """Yield the texts of a .jsonl, .parquet, .txt, .md or .py file, or of a folder of them.

    A record's text is its field "text", or the contents of its "messages", one by one. Files of a
    folder come in sorted order; other kinds in it, and hidden files, are passed over. Raises
    UserError naming file and line.
    """
    path = files.user_path(path)
    if path.is_dir():
        found = [file for file in files.walk(path) if file.suffix.lower() in CORPUS_SUFFIXES]
        if not found:
            raise UserError(f"The folder {path} holds no {', '.join(CORPUS_SUFFIXES)} file.")
        for file in found:
            yield from corpus_texts(file)
        return
    if not path.is_file():
        raise UserError(f"There is no file or folder {path}.")
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        yield files.read_text(path)
    elif suffix == ".jsonl":
        yield from _texts(read_json_lines(path))
    elif suffix == ".parquet":
        yield from _texts(_parquet_rows(path))
    else:
        raise UserError(
            f"{path} is of a kind that cannot be read; known are {', '.join(CORPUS_SUFFIXES)}."
        )


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa  # for this one kind of file
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [n for n in ("text", "messages") if n in file.schema_arrow.names][:1]
            if not columns:
                raise UserError(f"{path} has neither a column 'text' nor a column 'messages'.")
            number = 0
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number} of {path}", row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet: {error}.") from None


def _texts(rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    for where, row in rows:
        text, messages = row.get("text"), row.get("messages")
        if isinstance(text, str):
            yield text
        elif isinstance(messages, list):
            for number, message in enumerate(messages, start=1):
                yield _text(message, where, number)
        elif not row.keys() & {"text", "messages"} or text is not None or messages is not None:
            raise UserError(f"{where} has neither a text field 'text' nor a list 'messages'.")


def _text(message: Any, where: str, number: int) -> str:
    if not isinstance(message, Mapping):
        raise UserError(f"{where} has, as message {number}, no object.")
    try:
        return message_text(message, f"as message {number}", "content") or ""
    except BadRecord as error:
        raise UserError(f"{where} {error}.") from None
