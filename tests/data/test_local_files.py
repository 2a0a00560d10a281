"""Local files: which ones a source reads, each once, and records of files that differ."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mobilemoe_mlx.data.local_files import NoFile, find_files, open_files
from mobilemoe_mlx.data.source_config import Format, SourceConfig
from mobilemoe_mlx.data.sources import Source, read_records
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def config(*patterns: str, format: Format = "text", **keys: Any) -> SourceConfig:
    return SourceConfig.from_dict(
        {"name": "s", "weight": 1, "files": list(patterns), **keys}, format
    )


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")


def names(folder: Path, *patterns: str, heldout: tuple[str, ...] = ()) -> list[str]:
    reserved = [folder / name for name in heldout]
    return [path.name for path in find_files(config(*patterns), folder, reserved).paths]


def test_files_come_in_the_order_of_the_patterns_and_sorted_within_one(tmp_path: Path) -> None:
    write(tmp_path, a="1", b="2", c="3", z="4")
    assert names(tmp_path, "z.jsonl", "[abc].jsonl") == ["z.jsonl", "a.jsonl", "b.jsonl", "c.jsonl"]
    (tmp_path / "._a.jsonl").write_bytes(b"\0\5\26\7")
    (tmp_path / ".b.jsonl").write_bytes(b"\0")
    assert names(tmp_path, "*.jsonl") == ["a.jsonl", "b.jsonl", "c.jsonl", "z.jsonl"]


def test_a_file_that_is_named_twice_is_read_once_and_that_is_said(tmp_path: Path) -> None:
    write(tmp_path, a="1", b="2")
    (tmp_path / "soft.jsonl").symlink_to(tmp_path / "a.jsonl")
    os.link(tmp_path / "b.jsonl", tmp_path / "hard.jsonl")
    (tmp_path / "other").symlink_to(tmp_path)
    found = find_files(config("*.jsonl", "a.jsonl", "other/b.jsonl", "./a.jsonl"), tmp_path)
    assert [path.name for path in found.paths] == ["a.jsonl", "b.jsonl"]
    said = "\n".join(found.notices)
    for name in ("soft.jsonl", "hard.jsonl", "other/b.jsonl"):
        assert f"{name} is " in said
    assert f"{tmp_path / 'a.jsonl'} is named twice; it is read once." in said


def test_a_link_whose_file_is_absent_is_named(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    (tmp_path / "d.jsonl").symlink_to(tmp_path / "gone")
    for pattern in ("*.jsonl", "d.jsonl"):
        with pytest.raises(UserError, match=r"d\.jsonl is a link whose file is absent"):
            names(tmp_path, pattern)


def test_why_there_is_no_file_of_a_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(NoFile, match=r"pipe\.jsonl is neither a file nor a folder"):
        names(tmp_path, "pipe.jsonl")
    write(tmp_path, **{"cafe\u0301": "1"})
    with pytest.raises(NoFile, match=r"no file .*looks the same .*'cafe\\u0301.*caf\\xe9"):
        names(tmp_path, "caf\u00e9.jsonl")
    with pytest.raises(NoFile, match=r"no file .*other\.jsonl$"):
        names(tmp_path, "other.jsonl")


def test_a_folder_that_may_not_be_entered_is_not_empty(tmp_path: Path, monkeypatch) -> None:
    """For a user whom the rights bind, which the one of the tests may not be."""

    def refused(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refused)
    with pytest.raises(UserError, match=r"Cannot look at .*a\.jsonl: Permission denied") as error:
        names(tmp_path, "a.jsonl")
    assert not isinstance(error.value, NoFile)  # which `info` passes over


def test_a_held_out_file_that_a_pattern_catches_is_left_out_and_that_is_said(
    tmp_path: Path,
) -> None:
    write(tmp_path, a="1", b="2", held="3")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "held.jsonl")
    found = find_files(config("*.jsonl"), tmp_path, [tmp_path / "held.jsonl"])
    assert [path.name for path in found.paths] == ["a.jsonl", "b.jsonl"]
    assert any(
        "held.jsonl is held out, so it is not trained on." in notice for notice in found.notices
    )
    assert names(tmp_path, "a.jsonl", "h*.jsonl", heldout=("held.jsonl",)) == ["a.jsonl"]
    for patterns in (["held.jsonl", "a.jsonl"], ["link.jsonl", "a.jsonl"], ["./held.jsonl"]):
        with pytest.raises(UserError, match="which is held out"):
            names(tmp_path, *patterns, heldout=("held.jsonl",))
    with pytest.raises(UserError, match=r"has no file left: .*held\.jsonl is held out"):
        names(tmp_path, "he*.jsonl", heldout=("held.jsonl",))


def test_a_folder_and_a_name_without_a_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=r"x is a folder: name its files, as in x/\*\.jsonl"):
        names(tmp_path, "x")
    with pytest.raises(UserError, match=r"source 's': no file .*y\.jsonl"):
        names(tmp_path, "y.jsonl")


def test_files_with_other_fields_beside_the_wanted_one(tmp_path: Path) -> None:
    """What a typed table would refuse or change: extra and null columns, dates, digits, numbers."""
    rows: list[dict[str, Any]] = [
        {"text": "2024-01-01"},
        {"text": "007", "source": "web"},
        {"source": 5, "text": "1e3", "meta": {"a": [1, "x", None]}},
        {"text": "true", "source": None, "meta": "now a text"},
    ]
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [row["text"] for row in rows]
    assert list(read_records(config("?.jsonl"), tmp_path)) == texts
    assert list(read_records(config("all.jsonl"), tmp_path)) == texts


def test_kinds_of_files_can_be_mixed_and_their_suffix_be_upper_case(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    (tmp_path / "b.TXT").write_bytes(b"\xef\xbb\xbftwo\r\nlines")
    pq.write_table(pa.table({"text": ["3", "4"]}), tmp_path / "c.parquet")
    records = list(read_records(config("a.jsonl", "b.TXT", "c.parquet"), tmp_path))
    assert records == ["1", "two\nlines", "3", "4"]


def test_bad_records_stop_by_name_or_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": 5}\n{"text": "two"}\noops\n')
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    source = config("a.jsonl", "b.txt")
    with pytest.raises(UserError, match=r"line 3 of .*a\.jsonl has a number in 'text'.*=skip"):
        list(read_records(source, tmp_path))
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8 text: byte 3 is 0xe9"):
        list(read_records(config("b.txt"), tmp_path))
    bad = Reason.BAD_RECORD
    assert list(read_records(source, tmp_path, on_bad_record="skip")) == [
        "one",
        bad,
        "two",
        bad,
        bad,
    ]
    endless = Source(source, tmp_path, 0, on_bad_record="skip")
    assert {next(endless) for _ in range(100)} == {"one", "two"}
    assert abs(endless.statistics.skipped[bad] - 150) <= 3
    with pytest.raises(
        UserError, match=r"no usable record in 'text'; left out: \d+ records? \(bad record\)"
    ):
        next(Source(config("b.txt"), tmp_path, 0, on_bad_record="skip"))


def test_only_the_wanted_columns_of_parquet_are_read(tmp_path: Path) -> None:
    conversation = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ok"}]
    tables = [
        pa.Table.from_pylist([{"messages": conversation, "n": i} for i in range(5)]),
        pa.Table.from_pylist([{"n": "x", "messages": [{**m, "name": None} for m in conversation]}]),
        pa.table({"messages": pa.array([None], pa.null())}),
    ]
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{i}.parquet", row_group_size=2)
    records = list(read_records(config("*.parquet", format="chat"), tmp_path))
    assert records == [conversation] * 6 + [Reason.EMPTY]


def test_categories_and_other_types_of_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["a", "b", "a", None]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    assert list(read_records(config("a.parquet"), tmp_path)) == ["a", "b", "a", Reason.EMPTY]
    pq.write_table(pa.table({"text": ["x", "y"], "n": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"row 1 of .*b\.parquet has a number in 'n'"):
        list(read_records(config("b.parquet", field="n"), tmp_path))
    with pytest.raises(UserError, match=r"b\.parquet has no field 'txt' \(did you mean 'text'\?\)"):
        list(read_records(config("b.parquet", field="txt"), tmp_path))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"source 's' cannot be read: .*c\.parquet"):
        list(read_records(config("c.parquet"), tmp_path))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"source 's' is empty: .*d\.parquet"):
        list(read_records(config("d.parquet"), tmp_path))


def test_a_changed_parquet_file_is_not_read_from_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for texts in (["one"], ["two"]):
        pq.write_table(pa.table({"text": texts}), path)
        os.utime(path, (1, 1))
        assert list(read_records(config("a.parquet"), tmp_path)) == texts


def test_digests_are_of_the_content(tmp_path: Path) -> None:
    write(tmp_path, a="1", b="1", c="2")
    digests = [file.sha256 for file in open_files(config("x"), sorted(tmp_path.iterdir())).files]
    assert digests[0] == digests[1] != digests[2]


def test_odd_names_of_folders_and_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "proj [v2]::x? *"
    folder.mkdir()
    write(folder, a="1")
    pq.write_table(pa.table({"text": ["2"]}), folder / "b[1].parquet")
    assert list(read_records(config("*.jsonl", "b[1].parquet"), folder)) == ["1", "2"]
    monkeypatch.setenv("HOME", str(folder))
    assert list(read_records(config("~/a.jsonl", "~/*.parquet"), None)) == ["1", "2"]
    assert list(read_records(config("*.jsonl"), "~")) == ["1"]
