"""Texts of files and folders for a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mobilemoe_mlx.data.corpus_texts import corpus_texts
from mobilemoe_mlx.errors import UserError


def test_corpus_texts_reads_every_kind(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q\n"}, {"role": "assistant", "content": "a"}]
    lines = [json.dumps({"text": "é\n"}), "", json.dumps({"messages": messages})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pq.write_table(pa.table({"text": ["p1", "p2", None], "n": [1, 2, 3]}), tmp_path / "b.parquet")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.md").write_text("# c", encoding="utf-8")
    (tmp_path / "sub" / "ignored.bin").write_bytes(b"\xff")
    for name in ("._a.jsonl", ".hidden.txt", "sub/._c.md"):
        (tmp_path / name).write_bytes(b"\0\xff")
    assert list(corpus_texts(tmp_path)) == ["é\n", "q\n", "a", "p1", "p2", "# c"]


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"', "line 2"),
        ("a.jsonl", b'{"words": "x"}\n', "line 1"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "line 1"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": 5}]}\n', "line 1 .*a number"),
        ("a.parquet", b"no parquet", "parquet"),
        ("a.bin", b"", "kind"),
    ],
)
def test_corpus_texts_names_what_is_wrong(
    name: str, content: bytes, match: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match):
        list(corpus_texts(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no"):
        list(corpus_texts(tmp_path / "empty"))


def test_byte_order_marks_text_parts_and_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = b"\xef\xbb\xbf"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "User", "content": parts}, {"role": "assistant", "content": None}]
    lines = [json.dumps({"text": "x", "n": None}), json.dumps({"messages": messages, "text": None})]
    content = mark + "\n".join(lines).encode()
    (tmp_path / "a [1].jsonl").write_bytes(content)
    (tmp_path / "b.TXT").write_bytes(mark + b"y")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(corpus_texts("~")) == ["x", "ab", "", "y"]
    assert list(corpus_texts("~/a [1].jsonl")) == ["x", "ab", ""]
