"""The check before a run: counts, the first bad record, files and records that are there twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mobilemoe_mlx.data.check import CheckedMixture, check_mixture
from mobilemoe_mlx.data.mixture_config import MixtureConfig
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError


def encode(record: Any) -> tuple[list[int], list[bool]]:
    text = record if isinstance(record, str) else "".join(m["content"] for m in record)
    return [0, *text.encode()], [False] + [True] * len(text)


def write(path: Path, *rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def check(folder: Path, files: dict[str, Any], **options: Any) -> CheckedMixture:
    sources = [{"name": name, "weight": 1, **table} for name, table in files.items()]
    config = MixtureConfig.from_dict({"format": "text", "sources": sources})
    return check_mixture(config, folder, encode, **options)


def test_counts_shares_and_digests(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": "one"}, {"text": ""}, {"text": "three"})
    write(tmp_path / "b.jsonl", {"text": "2"})
    tables = {
        "x": {"files": ["*.jsonl"], "weight": 3},
        "hub": {"path": "some/dataset"},  # not touched: there is no network
    }
    checked = check(tmp_path, tables, encode_all=True)
    source, hub = checked.sources
    assert (source.share, hub.share, hub.dataset) == (0.75, 0.25, "some/dataset")
    assert source.records == 4
    assert source.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert source.statistics.tokens == 4 + 6 + 2
    assert source.statistics.skipped == {Reason.EMPTY: 1}
    content = (tmp_path / "b.jsonl").read_bytes()
    assert source.digests[str(tmp_path / "b.jsonl")] == hashlib.sha256(content).hexdigest()
    assert checked.notices == ()
    assert json.loads(json.dumps(checked.to_dict()))["sources"][0]["statistics"]["tokens"] == 12


def test_every_line_is_read_before_the_run_not_only_the_first(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *({"text": "x"} for _ in range(50)), {"txt": "y"}, {"text": 3})
    with pytest.raises(UserError, match=r"source 'x': line 51 of .*a\.jsonl has no field 'text'"):
        check(tmp_path, {"x": {"files": ["a.jsonl"]}})
    (source,) = check(tmp_path, {"x": {"files": ["a.jsonl"]}}, on_bad_record="skip").sources
    assert source.statistics.skipped == {Reason.BAD_RECORD: 2}
    assert source.first_bad is not None and "line 51 of" in source.first_bad


def test_a_source_without_a_usable_record_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": "one"})
    write(tmp_path / "b.jsonl", {"text": ""}, {"text": None})
    with pytest.raises(
        UserError,
        match=r"source 'y' has no usable record in 'text'; left out: 2 records \(empty\)",
    ):
        check(tmp_path, {"x": {"files": ["a.jsonl"]}, "y": {"files": ["b.jsonl"]}})


def test_a_file_of_two_sources_is_refused_unless_they_read_other_fields(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": "one", "title": "two"})
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    both = {"x": {"files": ["a.jsonl"]}, "y": {"files": ["l*.jsonl"]}}
    with pytest.raises(UserError, match=r"source 'y' reads .*link\.jsonl, and so does source 'x'"):
        check(tmp_path, both)
    both["y"]["field"] = "title"  # type: ignore[assignment]
    assert [source.records for source in check(tmp_path, both).sources] == [1, 1]


def test_held_out_records_in_the_folder_of_a_dataset_are_told(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    write(tmp_path / "ds" / "train.jsonl", {"text": "one"}, {"text": "two"})
    source = {"x": {"path": str(tmp_path / "ds")}}
    (told,) = check(tmp_path, source, heldout_records=["two", "three"]).notices
    assert "source 'x': 1 of its 2 records are held out too" in told
    assert check(tmp_path, source).notices == ()


def test_held_out_files_and_records_in_the_training_data_are_told(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    write(tmp_path / "held.jsonl", {"text": "two"})
    checked = check(
        tmp_path,
        {"x": {"files": ["*.jsonl"]}},
        heldout=[tmp_path / "held.jsonl"],
        heldout_records=["two", "three"],
    )
    assert list(checked.sources[0].digests) == [str(tmp_path / "a.jsonl")]
    left_out, repeated = checked.notices
    assert "held.jsonl is held out, so it is not trained on" in left_out
    assert "1 of its 2 records are held out too" in repeated
