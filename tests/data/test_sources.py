"""Sources: every record once an epoch, exact resume anywhere, clear errors."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mobilemoe_mlx.data.source_config import Format, SourceConfig
from mobilemoe_mlx.data.sources import Source, read_records
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError

TEXTS = [f"document number {i}" for i in range(53)]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def text_rows(texts: list[str]) -> list[dict]:
    return [{"text": text} for text in texts]


def config(format: Format = "text", **values) -> SourceConfig:
    return SourceConfig.from_dict({"name": "s", "weight": 1, **values}, format)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """53 records in three jsonl shards, the same in parquet with small row groups."""
    for kind in ("jsonl", "parquet"):
        (tmp_path / kind).mkdir()
    for shard in range(3):
        rows = text_rows(TEXTS[shard::3])
        write_jsonl(tmp_path / "jsonl" / f"part{shard}.jsonl", rows)
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / "parquet" / f"part{shard}.parquet", row_group_size=5)
    return tmp_path


def open_source(kind: str, folder: Path, seed: int = 3) -> Source:
    if kind.startswith("stream"):
        path = str(folder / kind.removeprefix("stream-"))
        return Source(config(path=path), None, seed, shuffle_block=7)
    return Source(config(files=[f"{kind}/*.{kind}"]), folder, seed)


KINDS = ["jsonl", "parquet", "stream-jsonl", "stream-parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_has_every_record_once_in_its_own_order(kind: str, folder: Path) -> None:
    source = open_source(kind, folder)
    epochs = [list(islice(source, len(TEXTS))) for _ in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(TEXTS)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != TEXTS
    assert epochs[0] == list(islice(open_source(kind, folder), len(TEXTS)))
    assert epochs[0] != list(islice(open_source(kind, folder, seed=4), len(TEXTS)))


@pytest.mark.parametrize("kind", KINDS)
def test_resume_continues_exactly_anywhere(kind: str, folder: Path) -> None:
    source = open_source(kind, folder)
    states, records = [], []
    for _ in range(120):  # over two epoch ends
        states.append(json.dumps(source.state_dict()))
        records.append(next(source))
    resumed = open_source(kind, folder)
    for at in (119, 0, 6, 7, 8, 50, 52, 53, 54, 60, 106, 107):  # also backwards on one object
        resumed.load_state_dict(json.loads(states[at]))
        assert json.dumps(resumed.state_dict()) == states[at]
        assert list(islice(resumed, 120 - at)) == records[at:]
        assert resumed.epoch == source.epoch


@pytest.mark.parametrize("kind", KINDS)
def test_resume_from_a_resumed_run_is_exact_too(kind: str, folder: Path) -> None:
    uninterrupted = list(islice(open_source(kind, folder), 120))
    state, records = open_source(kind, folder).state_dict(), []
    while len(records) < 120:
        source = open_source(kind, folder)
        source.load_state_dict(json.loads(json.dumps(state)))
        records += islice(source, 10)
        state = source.state_dict()
    assert records == uninterrupted


def test_two_sources_of_the_same_files_have_different_orders(folder: Path) -> None:
    orders = [
        list(islice(Source(config(name=name, files=["jsonl/*.jsonl"]), folder, 0), len(TEXTS)))
        for name in ("a", "b")
    ]
    assert orders[0] != orders[1]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("two\nlines\n")
    (tmp_path / "b.txt").write_text("one line")
    records = list(read_records(config(files=["*.txt"]), tmp_path))
    assert records == ["two\nlines\n", "one line"]


def test_read_records_keeps_the_stored_order_and_ends(folder: Path) -> None:
    assert list(read_records(config(files=["jsonl/part0.jsonl"]), folder)) == TEXTS[0::3]


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]


@pytest.mark.parametrize(
    ("row", "keys", "messages"),
    [
        ({"messages": CONVERSATION}, {}, CONVERSATION),
        ({"chat": CONVERSATION}, {"field": "chat"}, CONVERSATION),
        (
            {"problem": "Hi", "solution": "Hello"},
            {"prompt_field": "problem", "response_field": "solution"},
            CONVERSATION[1:],
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            {"conversations_field": "conversations"},
            CONVERSATION,
        ),
    ],
)
def test_three_forms_of_chat_give_messages(row, keys, messages, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "chat.jsonl", [row])
    assert list(read_records(config("chat", files=["chat.jsonl"], **keys), tmp_path)) == [messages]


def test_unusable_records_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [*text_rows(["one", "", "two", "  \n"]), {"text": None}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    source = Source(config(files=["a.jsonl"]), tmp_path, 0)
    assert Counter(islice(source, 200)) == {"one": 100, "two": 100}
    assert set(source.statistics.skipped) == {Reason.EMPTY}
    assert 3 * 99 <= source.statistics.skipped[Reason.EMPTY] <= 3 * 100

    tool_turn = [{"role": "tool", "content": "{}"}, *CONVERSATION]
    rows = [{"messages": m} for m in (tool_turn, CONVERSATION[:2], CONVERSATION)]
    write_jsonl(tmp_path / "chat.jsonl", rows)
    assert list(read_records(config("chat", files=["chat.jsonl"]), tmp_path)) == [
        Reason.TOOLS,
        Reason.NO_ANSWER,
        CONVERSATION,
    ]


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        (None, {"files": ["no/*.jsonl"]}, "source 's': no file .*no"),
        ("", {"files": ["a.jsonl"]}, "source 's' is empty: .*a.jsonl"),
        ('{"text": ""}\n', {"files": ["a.jsonl"]}, "source 's' has no usable record"),
        (
            '{"txt": "x"}\n',
            {"files": ["a.jsonl"]},
            r"source 's': line 1 of .*a\.jsonl has no field 'text'.*mean 'txt'",
        ),
        (
            "{broken\n",
            {"files": ["a.jsonl"]},
            r"source 's': line 1 of .*a\.jsonl is not valid JSON",
        ),
        ("x", {"files": ["a.csv"]}, "source 's': files must all be .jsonl.*not .csv"),
        (None, {"path": "./no-such-folder"}, "source 's' cannot be read"),
    ],
)
def test_bad_data_names_the_source(content, keys, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / keys["files"][0]).write_text(content)
    with pytest.raises(UserError, match=message):
        next(Source(config(**keys), tmp_path, 0))


def test_an_unknown_split_names_the_source(folder: Path) -> None:
    with pytest.raises(UserError, match=r"source 's' cannot be read.*nope"):
        Source(config(path=str(folder / "jsonl"), split="nope"), None, 0)


def test_local_files_without_a_data_folder_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.folder"):
        Source(config(files=["a.jsonl"]), None, 0)


def test_resuming_on_changed_files_is_refused(folder: Path) -> None:
    state = open_source("jsonl", folder).state_dict()
    write_jsonl(folder / "jsonl" / "part0.jsonl", text_rows(["only one"]))
    with pytest.raises(UserError, match="had 53 records"):
        open_source("jsonl", folder).load_state_dict(state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weigth": 1}, "no key 'weigth'.*mean 'weight'"),
        ({"files": ["a"], "weight": 0}, "weight is 0.0; it must be above 0"),
        ({"files": ["a"], "weight": float("nan")}, "weight is nan; it must be finite"),
        ({}, "either path .* or files"),
        ({"files": ["a"], "path": "b"}, "either path .* or files"),
        ({"files": ["a"], "split": "train"}, "split belong to path"),
        ({"files": [1]}, r"files is \[1\]; it must be a list of strings"),
        ({"files": [""]}, r"files\[0\] is ''; it must not be empty"),
        ({"files": ["a"], "weight": True}, "weight is True; it must be a number"),
        ({"files": ["a"], "field": 1}, "field is 1; it must be a text"),
        ({"files": ["a"], "prompt_field": "q"}, "go together"),
        ({"files": ["a"], "field": "m", "conversations_field": "c"}, "give one of"),
    ],
)
def test_a_wrong_table_is_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"source 's'.*{message}"):
        config("chat", **values)


def test_the_format_belongs_to_the_mixture_not_to_the_source() -> None:
    values = {"name": "s", "weight": 1, "files": ["a"], "format": "text"}
    with pytest.raises(UserError, match="no key 'format'"):
        SourceConfig.from_dict(values, "text")


def test_text_sources_have_no_chat_fields() -> None:
    with pytest.raises(UserError, match="for chat"):
        config("text", files=["a"], conversations_field="c")
