"""The data of a fine-tuning run: what is accepted, split, packed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finetune.data import FinetuneData, open_finetune_data
from mobilemoe_mlx.finetune.data_config import FinetuneDataConfig
from mobilemoe_mlx.tokenizer import ChatTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> ChatTokenizer:
    return load_tokenizer(tokenizer_folder)


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def write(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def opened(path: Path, tokenizer: ChatTokenizer, **settings: Any) -> FinetuneData:
    config = FinetuneDataConfig(path=str(path), **{"context": 64, **settings})
    return open_finetune_data(config, tokenizer, 2)


def texts(data: FinetuneData, tokenizer: ChatTokenizer, batches: int) -> str:
    """What the next batches hold."""
    parts = [next(data.stage.batches).inputs for _ in range(batches)]
    return "".join(tokenizer.decode(row.tolist()) for part in parts for row in part)


def test_a_folder_as_for_mlx_lm(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    write(tmp_path / "train.jsonl", [chat(f"q{i}", f"a{i}") for i in range(20)])
    write(tmp_path / "valid.jsonl", [chat("valid", "yes")])
    write(tmp_path / "test.jsonl", [chat("test", "no"), chat("test 2", "no")])
    data = opened(tmp_path, tokenizer)
    assert [(p.name, p.records) for p in data.report.parts] == [
        ("train", 20),
        ("held out", 1),
        ("test", 2),
    ]
    assert set(data.digests) == {"train.jsonl", "valid.jsonl", "test.jsonl"}
    (batch,) = data.stage.heldout.batches
    assert "valid" in tokenizer.decode(batch.inputs[0].tolist())
    (batch,) = data.test.batches
    assert "test 2" in tokenizer.decode(batch.inputs[0].tolist())
    seen = texts(data, tokenizer, 10)
    assert all(f"q{i}<" in seen for i in range(20)) and "valid" not in seen


def test_a_part_is_split_off_the_same_every_time(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Twins in content, whatever their blanks and capitals, are on the same side."""
    records = [chat(f"Question {i % 40}", "Answer") for i in range(80)]
    records += [chat(f" question  {i}", "ANSWER\n") for i in range(40)]
    path = write(tmp_path / "mine.jsonl", records)
    data = opened(path, tokenizer, heldout_fraction=0.1)
    train, held = data.report.parts
    assert (train.records, held.records) == (108, 12)

    def numbers(text: str) -> set[int]:
        return {i for i in range(40) if f"uestion {i}<" in text or f"uestion  {i}<" in text}

    rows = [row for b in data.stage.heldout.batches for row in b.inputs]
    held_numbers = numbers("".join(tokenizer.decode(row.tolist()) for row in rows))
    assert len(held_numbers) == 4
    assert numbers(texts(data, tokenizer, 60)) == set(range(40)) - held_numbers
    again = opened(path, tokenizer, heldout_fraction=0.1)
    for ours, theirs in zip(data.stage.heldout.batches, again.stage.heldout.batches, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(ours, theirs, strict=True))
    other = opened(path, tokenizer, heldout_fraction=0.1, seed=1)
    first = data.stage.heldout.batches[0].inputs
    assert not np.array_equal(first, other.stage.heldout.batches[0].inputs)


def test_resuming_gives_the_batches_that_would_have_followed(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    path = write(tmp_path / "mine.jsonl", [chat("q" * (i % 9), f"a{i}") for i in range(30)])
    data = opened(path, tokenizer)
    for _ in range(7):
        next(data.stage.batches)
    state = json.loads(json.dumps(data.stage.batches.state_dict()))
    expected = [next(data.stage.batches) for _ in range(20)]
    again = opened(path, tokenizer)
    again.stage.batches.load_state_dict(state)
    for batch in expected:
        assert all(
            np.array_equal(x, y) for x, y in zip(batch, next(again.stage.batches), strict=True)
        )
    write(path, [chat("q" * (i % 9), f"b{i}") for i in range(30)])
    with pytest.raises(UserError, match="content has changed"):
        opened(path, tokenizer).stage.batches.load_state_dict(state)


def test_the_batches_of_a_pass_are_counted(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    path = write(tmp_path / "mine.jsonl", [chat("q" * (i % 20), f"a{i}") for i in range(50)])
    data = opened(path, tokenizer, heldout_fraction=0.0)
    assert data.steps_per_epoch is not None and not data.stage.heldout.batches
    batches = 0
    while data.stage.batches.statistics().sources["train"].epochs == 0:
        next(data.stage.batches)
        batches += 1
    assert abs(batches - data.steps_per_epoch) <= 1
