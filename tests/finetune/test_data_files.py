"""What `--data` may name, against mlx-lm's own readers; what is said of files that will not do."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_templates import TOOLS
from mlx_lm.tokenizer_utils import load as load_as_mlx_lm
from mlx_lm.tuner import datasets as mlx_lm_datasets

from mobilemoe_mlx.data.conversation_encoder import ConversationEncoder
from mobilemoe_mlx.data.mixture import Document, document_encoder
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.data import FinetuneData, open_finetune_data
from mobilemoe_mlx.finetune.data_config import FinetuneDataConfig
from mobilemoe_mlx.finetune.data_files import open_data_files
from mobilemoe_mlx.tokenizer import ChatTokenizer, load_tokenizer

pytestmark = pytest.mark.usefixtures("datasets_cache")

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CHAT = [
    {"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]},
    {
        "messages": [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
        ],
        "other": 3,
    },
    {
        "messages": [
            {"role": "user", "content": "1+1"},
            {"role": "assistant", "tool_calls": [CALL]},
        ],
        "tools": [{"function": {"name": "add"}, "type": "function"}],
    },
]
COMPLETIONS = [{"prompt": "1?", "completion": "2"}, {"completion": "b", "prompt": "a", "text": ""}]
TEXTS = [{"text": "def f(): pass"}, {"text": "é 🎉\n", "extra": None}]
NAMED = [{"question": "1?", "reply": "2"}, {"question": "a", "reply": "b"}]

FORMS = {
    "chat": (CHAT, {}),
    "completions": (COMPLETIONS, {}),
    "text": (TEXTS, {}),
    "named": (NAMED, {"prompt_feature": "question", "completion_feature": "reply"}),
    "named chat": ([{"turns": CHAT[0]["messages"]}], {"chat_feature": "turns"}),
    "named text": ([{"body": "abc"}], {"text_feature": "body"}),
    "both": ([{**CHAT[0], **COMPLETIONS[0], **TEXTS[0]}], {}),
}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> ChatTokenizer:
    """One whose template writes tool calls."""
    bare = load_tokenizer(tokenizer_folder)
    bare._tokenizer.chat_template = TOOLS
    return ChatTokenizer(bare._tokenizer)


def opened(path: Path | str, tokenizer: ChatTokenizer, **settings: Any) -> FinetuneData:
    config = FinetuneDataConfig(path=str(path), **{"context": 256, **settings})
    return open_finetune_data(config, tokenizer, 2)


@pytest.mark.parametrize("form", FORMS)
def test_records_are_read_as_mlx_lm_reads_them(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: ChatTokenizer, form: str
) -> None:
    records, features = FORMS[form]
    write(tmp_path / "train.jsonl", records)
    theirs = load_as_mlx_lm(tokenizer_folder)
    theirs._tokenizer.chat_template = TOOLS
    settings = SimpleNamespace(**features, mask_prompt="text" not in form)
    expected, _, _ = mlx_lm_datasets.load_local_dataset(tmp_path, theirs, settings)

    (part,) = open_data_files(FinetuneDataConfig(path=str(tmp_path), **features)).train
    assert len(part.records) == len(expected) == len(records)
    encode = (
        ConversationEncoder(tokenizer, "answers")
        if part.config.format == "chat"
        else document_encoder(tokenizer, "text")
    )
    for index in range(len(records)):
        ours = encode(part.records.read(index))
        tokens, offset = expected.process(expected[index])
        assert isinstance(ours, tuple)
        assert ours[0] == tokens
        start = max(offset, 1)  # the first token is never a target
        assert ours[1] == [False] * start + [True] * (len(tokens) - start)


def test_parquet_holds_what_json_lines_hold(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """A table gives every call the arguments of all, and every record tools: null where absent.

    It has keys in alphabetical order, as those of the tools are here.
    """
    other = json.loads(json.dumps(CHAT[2]))
    other["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"b": 2}
    records = [CHAT[2], other, CHAT[0]]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", records)
    encode = ConversationEncoder(tokenizer, "answers")
    documents = []
    for name in ("a.parquet", "a.jsonl"):
        (part,) = open_data_files(FinetuneDataConfig(path=str(tmp_path / name))).train
        documents.append([encode(part.records.read(i)) for i in range(3)])
    assert documents[0] == documents[1]
    assert all(isinstance(document, Document) for document in documents[0])


def test_a_text_file_is_one_document(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    (tmp_path / "book.txt").write_text("Some text, " * 50)
    data = opened(tmp_path / "book.txt", tokenizer, context=64)
    assert data.stage.format == "text" and data.report.parts[0].records == 1
    assert not data.stage.heldout.batches and "too few different records" in data.report.text()
    assert next(data.stage.batches).loss_mask.all()


def test_sharegpt_is_recognised(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    turns = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
    path = write(tmp_path / "a.jsonl", [{"conversations": turns}])
    assert opened(path, tokenizer).report.parts[0].form == "ShareGPT"


def test_parts_may_have_other_forms(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    write(tmp_path / "train.jsonl", CHAT)
    write(tmp_path / "valid.jsonl", COMPLETIONS)
    write(tmp_path / "test.jsonl", TEXTS)
    data = opened(tmp_path, tokenizer)
    assert [part.form for part in data.report.parts] == ["chat", "completions", "text"]
    assert data.stage.heldout.batches and data.test.batches


def test_our_own_mixtures(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    write(tmp_path / "a.jsonl", CHAT * 10)
    write(tmp_path / "b.jsonl", [{"q": f"{i}?", "a": f"{i}"} for i in range(20)])
    (tmp_path / "mixture.toml").write_text(
        'format = "chat"\n[[sources]]\nname = "a"\nweight = 1\nfiles = ["a.jsonl"]\n'
        '[[sources]]\nname = "b"\nweight = 3\nfiles = ["b*.jsonl"]\n'
        'prompt_field = "q"\nresponse_field = "a"\n'
    )
    data = opened(tmp_path / "mixture.toml", tokenizer, heldout_fraction=0.2)
    assert [part.name for part in data.report.parts][:2] == ["a", "b"]
    assert sum(part.records for part in data.report.parts) == 50
    for _ in range(40):
        next(data.stage.batches)
    tokens = {n: s.tokens for n, s in data.stage.batches.statistics().sources.items()}
    assert 2.8 < tokens["b"] / tokens["a"] < 3.2


def test_a_file_to_hold_out_may_be_named(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    write(tmp_path / "train.jsonl", CHAT * 3)
    other = write(tmp_path / "other.jsonl", CHAT[:1])
    data = opened(tmp_path, tokenizer, heldout=str(other))
    assert [part.records for part in data.report.parts] == [9, 1]
    assert "3 of the records to train on are held out too" in data.report.text()


def test_a_hub_dataset(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """A folder stands in for the hub: `datasets` opens both."""
    from mobilemoe_mlx.data.hub_dataset import open_hub_dataset

    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", CHAT)
    wanted = {"train": ("train",), "valid": ("valid", "validation"), "other": ("other",)}
    found = open_hub_dataset(
        str(tmp_path), subset=None, revision=None, wanted=wanted, required={"train"}
    )
    assert set(found) == {"train", "valid"}
    assert found["train"].read(2) == CHAT[2] | {"other": None}
    again = open_hub_dataset(
        str(tmp_path), subset=None, revision=None, wanted=wanted, required=set()
    )
    assert again["train"].sha256 == found["train"].sha256
    half = {"train": ("train[:34%]",)}
    (part,) = open_hub_dataset(
        str(tmp_path), subset=None, revision=None, wanted=half, required=set()
    ).values()
    assert len(part) == 1
    with pytest.raises(UserError, match=r"no split 'tests' \(did you mean 'test'\?\).*test_split"):
        open_hub_dataset(
            str(tmp_path),
            subset=None,
            revision=None,
            wanted={"test": ("tests",)},
            required={"test"},
        )


def test_a_hub_dataset_that_breaks_off(
    tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ConnectionError("reset\nby peer")

    monkeypatch.setattr("datasets.get_dataset_split_names", broken)
    with pytest.raises(
        UserError, match=r"org/name cannot be read: reset by peer.*goes on"
    ) as error:
        opened("org/name", tokenizer)
    assert "\n" not in str(error.value)


def lines(*records: Any) -> bytes:
    return "".join(
        (record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records
    ).encode()


GOOD = CHAT[0]
BAD_FILES = {
    "no JSON": (lines(GOOD, "{nonsense"), "line 2 of .*a.jsonl is not valid JSON"),
    "no object": (lines(GOOD, [1]), "line 2 of .* is not a JSON object, but a list"),
    "another form": (lines(GOOD, "", COMPLETIONS[0]), "line 3 of .* has no field 'messages'"),
    "no form": (lines({"a": 1, "b": 2}), "line 1 of .* has no .*; its fields are a, b: say which"),
    "messages": (lines({"messages": "hi"}), "line 1 of .* has a text in 'messages', not a list"),
    "no role": (lines({"messages": [{"content": ""}]}), "line 1 .* message 1, no text 'role'"),
    "tools": (lines(GOOD | {"tools": {}}), "line 1 .* has a table in 'tools', not a list"),
    "a tool": (lines(GOOD | {"tools": ["add"]}), "line 1 .* has a text as tool 1 of 'tools'"),
    "UTF-16": ("{}".encode("utf-16"), "line 1 of .* is UTF-16"),
    "cut off": (
        lines(GOOD) + b'{"messages": [{"ro',
        "line 2 .* the file ends there.* not be whole",
    ),
    "empty": (b"", "is not whole: it is empty"),
    "blank lines": (b"\n\n", "a.jsonl has no records"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    "nothing to learn": (
        lines({"messages": [{"role": "user", "content": "?"}]}, {"messages": []}),
        r"has no usable record; left out: 1 record \(no answer\), 1 record \(empty\)",
    ),
    "too long": (
        lines({"prompt": "long " * 300, "completion": "x"}),
        "No answer begins within the context of 256 tokens: choose a longer one",
    ),
    "a template's refusal": (
        lines(
            GOOD,
            {
                "messages": [
                    {"role": "tool", "content": "x", "tool_calls": [{}]},
                    GOOD["messages"][1],
                ]
            },
        ),
        "line 2 of .*Tool call 1 is not of the form",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_told_in_one_sentence(
    tmp_path: Path, tokenizer: ChatTokenizer, kind: str
) -> None:
    content, said = BAD_FILES[kind]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        opened(path, tokenizer)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_bad_records_may_be_skipped(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("{nonsense", GOOD, CHAT[1], COMPLETIONS[0]))
    data = opened(path, tokenizer, on_bad_record="skip")
    assert sum(part.records for part in data.report.parts) == 2
    (left_out,) = data.report.left_out
    assert left_out.skipped == {"bad record": 2}
    assert left_out.first_bad is not None and left_out.first_bad.startswith("line 1 of")


@pytest.mark.parametrize(
    ("made", "named", "said"),
    [
        ([], "", "folder .* has no train.jsonl"),
        (["a.jsonl"], "", "has no train.jsonl; it holds a.jsonl: give one of these files"),
        (["train.jsonl.part"], "", "the download is not finished .*train.jsonl.part was begun"),
        (["train.jsonl", "train.jsonl.incomplete"], "", "download is not finished"),
        (["a.csv"], "a.csv", "is of a kind that cannot be read"),
        (["a.parquet"], "a.parquet", "a.parquet cannot be read as parquet"),
        ([], "b.jsonl", "no file or folder"),
        (["train.jsonl", "valid.jsonl/a"], "", "There is no file .*valid.jsonl"),
    ],
)
def test_what_cannot_be_data_is_told(
    tmp_path: Path, tokenizer: ChatTokenizer, made: list[str], named: str, said: str
) -> None:
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, CHAT)
    with pytest.raises(UserError, match=said) as error:
        opened(tmp_path / named, tokenizer)
    assert "\n" not in str(error.value)


def test_the_name_of_a_file_is_not_looked_for_on_the_hub(
    tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/mine.jsonl", "data/mine.json", "mixtures/mine.toml"):
        with pytest.raises(UserError, match=f"no file or folder {name}"):
            opened(Path(name), tokenizer)


def test_a_validation_file_of_another_name_is_told(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    write(tmp_path / "train.jsonl", CHAT * 5)
    write(tmp_path / "validation.jsonl", CHAT)
    assert "validation.jsonl is not read" in opened(tmp_path, tokenizer).report.text()
