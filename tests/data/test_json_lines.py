"""JSON Lines: objects exactly as written, by number; what is wrong is named by file and line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mobilemoe_mlx.data.json_lines import BadRecord, JsonLines, read_json_lines

MARK = b"\xef\xbb\xbf"

CONTENT = (
    MARK
    + b'{"a": "2024-01-01", "n": 12345678901234567890}\n'
    + b"\r\n   \n"
    + b' {"a": "007", "b": null, "c": [1.0, 1e400, NaN]} \r\n'
    + MARK  # of the second of two files that were joined
    + b'\n{"a": "\\ud83d\\ude00 \xc2\xa0\xe2\x80\xa8\\u0000"}\n\n'
    + MARK
    + b'{"a": "true"}'  # the last line may lack its end
)
TEXTS = ["2024-01-01", "007", "😀 \u00a0\u2028\0", "true"]
LINES = [1, 4, 6, 8]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_bytes(CONTENT)
    return tmp_path / "a.jsonl"


def test_objects_are_read_by_number_as_they_are_written(path: Path) -> None:
    lines = JsonLines(path)
    assert len(lines) == 4
    for index in (3, 0, 2, 1, 3):
        assert lines.read(index)["a"] == TEXTS[index]
        assert lines.where(index) == f"line {LINES[index]} of {path}"
    assert lines.read(0)["n"] == 12345678901234567890
    assert lines.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_one_pass_gives_the_same(path: Path) -> None:
    lines = JsonLines(path)
    expected = [(lines.where(i), repr(lines.read(i))) for i in range(4)]
    assert [(where, repr(content)) for where, content in read_json_lines(path)] == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "is not valid JSON: Expecting ',' delimiter, at column 8"),
        (b"{'a': 1}", "is not valid JSON: Expecting property name"),
        (b'{"a": "x\ty"}', "is not valid JSON: Invalid control character"),
        (b'{"a": 1} {"a": 2}', "is not valid JSON: Extra data, at column 10"),
        (b"\0\0\0\0", "is not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "has 'c' twice in one object: remove the wrong one"),
        (b'["a"]', "is not a JSON object, but a list"),
        (b"null", "is not a JSON object, but a NoneType"),
        (b'{"a": "caf\xe9"}', "is not UTF-8 text: its byte 11 is 0xe9"),
        (b"\xff\xfe{\0}\0", "is UTF-16, not UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_are_read(
    line: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 3}\n')
    lines = JsonLines(path)
    assert (len(lines), lines.read(0), lines.read(2)) == (3, {"a": 1}, {"a": 3})
    with pytest.raises(BadRecord) as error:
        lines.read(1)
    assert str(error.value).startswith(f"line 3 of {path} {message}")
    with pytest.raises(BadRecord) as other:
        list(read_json_lines(path))
    assert str(other.value) == str(error.value)


def test_files_without_an_object_are_empty(tmp_path: Path) -> None:
    for content in (b"", b"\n", MARK, MARK + b"\r\n \n"):
        (tmp_path / "c.jsonl").write_bytes(content)
        assert len(JsonLines(tmp_path / "c.jsonl")) == 0


def test_reading_holds_no_more_than_a_line(tmp_path: Path) -> None:
    """Positions take 8 bytes per line; the content stays on the disk."""
    import tracemalloc

    path = tmp_path / "d.jsonl"
    record = json.dumps({"a": "x" * 10_000}) + "\n"
    with path.open("w") as file:
        for _ in range(3000):
            file.write(record)
    tracemalloc.start()
    lines = JsonLines(path)
    assert lines.read(2999)["a"].startswith("x")
    assert lines.where(2999).startswith("line 3000 ")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 30_000_000 and peak < 3_000_000
