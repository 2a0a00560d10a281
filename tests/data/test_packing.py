"""Packing: nothing lost, no loss across documents, the same batches for any number of ranks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mobilemoe_mlx.data.mixture import Mixture, text_encoder
from mobilemoe_mlx.data.mixture_config import MixtureConfig
from mobilemoe_mlx.data.packing import (
    PADDING,
    Batch,
    PackedBatches,
    document_attention_mask,
    heldout_batches,
)
from mobilemoe_mlx.data.source_config import Format, SourceConfig
from mobilemoe_mlx.data.statistics import Reason
from mobilemoe_mlx.errors import UserError

BOS, EOS, TURN = 256, 257, 258
CONTEXT, BATCH = 32, 4

encode_text = text_encoder(lambda text: list(text.encode()), BOS, EOS)


def encode_chat(messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """A chat format of bytes: loss on the assistant's bytes and the turn's end."""
    tokens, loss = [BOS], [False]
    for message in messages:
        body = [*message["content"].encode(), TURN]
        tokens += body
        loss += [message["role"] == "assistant"] * len(body)
    return tokens, loss


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(folder: Path, name: str, format: Format, count: int, longest: int) -> None:
    rng = random.Random(name)
    rows: list[dict] = []
    for i in range(count):
        text = f"{name}{i}:" + "".join(rng.choices("abcdef", k=rng.randrange(longest)))
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
        rows.append({"text": text} if format == "text" else {"messages": turns})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_mixture(folder: Path, format: Format) -> Mixture:
    longest = {"a": 90, "b": 12} if format == "text" else {"a": 14, "b": 8}
    for name, length in longest.items():
        write(folder, name, format, count=9, longest=length)
    tables = [{"name": n, "weight": w, "files": [f"{n}.jsonl"]} for n, w in (("a", 2), ("b", 1))]
    config = MixtureConfig.from_dict({"format": format, "sources": tables})
    return Mixture(config, folder, encode_text if format == "text" else encode_chat, seed=5)


def make_batches(folder: Path, format: Format, **ranks: int) -> PackedBatches:
    mixture = make_mixture(folder, format)
    return PackedBatches(mixture, CONTEXT, BATCH, split_documents=format == "text", **ranks)


def assert_same(ours: Iterable[Batch], theirs: Iterable[Batch]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        for ours_part, theirs_part in zip(our, their, strict=True):
            np.testing.assert_array_equal(ours_part, theirs_part)


FORMATS: list[Format] = ["text", "chat"]


@pytest.mark.parametrize("format", FORMATS)
def test_shapes_and_dtypes(format: Format, tmp_path: Path) -> None:
    batch = next(make_batches(tmp_path, format))
    assert {part.shape for part in batch} == {(BATCH, CONTEXT)}
    assert [part.dtype for part in batch] == [np.int32, np.int32, np.float32, np.int32]


def test_text_is_the_documents_laid_end_to_end(tmp_path: Path) -> None:
    batches = list(islice(make_batches(tmp_path, "text"), 30))
    inputs = np.concatenate([batch.inputs.ravel() for batch in batches])
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    loss = np.concatenate([batch.loss_mask.ravel() for batch in batches])
    stream: list[int] = []
    for document in make_mixture(tmp_path, "text"):
        stream += document.tokens
        if len(stream) > len(inputs):
            break
    np.testing.assert_array_equal(inputs, stream[: len(inputs)])
    np.testing.assert_array_equal(targets, stream[1 : len(inputs) + 1])
    # Everything is learnt but the step from one document's end to the next one's start.
    np.testing.assert_array_equal(loss, targets != BOS)
    assert all((batch.documents != PADDING).all() for batch in batches)


@pytest.mark.parametrize("format", FORMATS)
def test_documents_are_numbered_and_never_predict_each_other(
    format: Format, tmp_path: Path
) -> None:
    for batch in islice(make_batches(tmp_path, format), 30):
        starts = batch.inputs == BOS
        for row in range(BATCH):
            used = batch.documents[row] != PADDING
            length = int(used.sum())
            assert used[:length].all()
            steps = np.diff(batch.documents[row, :length])
            np.testing.assert_array_equal(steps == 1, starts[row, 1:length])
            assert set(steps) <= {0, 1}
            assert batch.documents[row, 0] == 0
        assert not batch.loss_mask[batch.documents == PADDING].any()
        assert not batch.loss_mask[batch.targets == BOS].any()


def test_a_first_token_that_asks_for_loss_gets_none_across_documents(tmp_path: Path) -> None:
    config = make_mixture(tmp_path, "text").config
    mixture = Mixture(config, tmp_path, lambda text: ([BOS, 1, 2], [True] * 3), seed=0)
    batch = next(PackedBatches(mixture, CONTEXT, BATCH, split_documents=True))
    np.testing.assert_array_equal(batch.loss_mask, batch.targets != BOS)


def test_chat_conversations_are_whole_in_order_and_their_answers_learnt(tmp_path: Path) -> None:
    packed = make_batches(tmp_path, "chat")
    batches = list(islice(packed, 40))
    mixture = make_mixture(tmp_path, "chat")
    learnt = 0
    for batch in batches:
        found = []
        for row in range(BATCH):
            for number in range(batch.documents[row].max() + 1):
                at = np.flatnonzero(batch.documents[row] == number)
                tokens = [*batch.inputs[row, at], batch.targets[row, at[-1]]]
                found.append((tokens, [False, *batch.loss_mask[row, at].astype(bool)]))
                learnt += int(batch.loss_mask[row, at].sum())
        expected = []
        for document in islice(mixture, len(found)):
            expected.append((document.tokens[: CONTEXT + 1], document.loss[: CONTEXT + 1]))
        assert sorted(found) == sorted(expected)
    assert learnt > 0
    statistics = packed.statistics()
    assert statistics.positions == 40 * BATCH * CONTEXT
    assert statistics.padding == sum(int((b.documents == PADDING).sum()) for b in batches)


def test_a_batch_is_complete_only_when_the_next_conversation_fits_nowhere(tmp_path: Path) -> None:
    packed = make_batches(tmp_path, "chat")
    for batch in islice(packed, 40):
        room = (batch.documents == PADDING).sum(axis=1).max()
        waiting = packed.state_dict()["pending"]
        assert len(waiting) == 1
        assert len(waiting[0]["tokens"]) - 1 > room


def test_a_conversation_beyond_the_context_is_truncated_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a", "chat", count=1, longest=2)
    row = {"messages": [{"role": "assistant", "content": "x" * 100}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    tables = [{"name": "a", "weight": 1, "files": ["a.jsonl"]}]
    config = MixtureConfig.from_dict({"format": "chat", "sources": tables})
    mixture = Mixture(config, tmp_path, encode_chat, seed=0)
    packed = PackedBatches(mixture, CONTEXT, BATCH, split_documents=False)
    batch = next(packed)
    assert (batch.documents == 0).all()
    assert (batch.targets == ord("x")).all()
    assert (
        packed.statistics().sources["a"].truncated == BATCH + 1
    )  # one more waits for the next batch
    assert packed.statistics().sources["a"].tokens_cut == (BATCH + 1) * (102 - (CONTEXT + 1))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_rows_make_up_the_one_process_batch(
    format: Format, world_size: int, tmp_path: Path
) -> None:
    whole = make_batches(tmp_path, format)
    parts = [
        make_batches(tmp_path, format, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for batch, *shares in islice(zip(whole, *parts, strict=False), 20):
        joined = Batch(*(np.concatenate(part) for part in zip(*shares, strict=True)))
        assert_same([joined], [batch])
    assert all(part.state_dict() == parts[0].state_dict() for part in parts)


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of 3"):
        make_batches(tmp_path, "text", world_size=3)


@pytest.mark.parametrize("format", FORMATS)
def test_resume_continues_exactly_at_any_batch(format: Format, tmp_path: Path) -> None:
    packed = make_batches(tmp_path, format)
    states, batches = [], []
    for _ in range(25):
        states.append(json.dumps(packed.state_dict()))
        batches.append(next(packed))
    final = packed.state_dict()
    epochs = [s["rows"]["epoch"] for s in final["mixture"].values()]
    assert min(epochs) >= 2  # epoch ends lie inside
    for at in range(0, 25, 3):
        resumed = make_batches(tmp_path, format)
        resumed.load_state_dict(json.loads(states[at]))
        assert_same(islice(resumed, 25 - at), batches[at:])
        assert resumed.state_dict() == final
        assert resumed.statistics() == packed.statistics()


@pytest.mark.parametrize("format", FORMATS)
def test_heldout_batches_hold_the_file_in_order_and_end(format: Format, tmp_path: Path) -> None:
    write(tmp_path, "a", format, count=9, longest=14)
    encode = encode_text if format == "text" else encode_chat
    config = SourceConfig.from_dict({"name": "a", "weight": 1, "files": ["a.jsonl"]}, format)
    batches, statistics = heldout_batches(
        config, tmp_path, encode, CONTEXT, BATCH, max_tokens=10**6
    )
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    documents = [encode(row["text" if format == "text" else "messages"]) for row in rows]
    if format == "text":
        stream = [token for tokens, _ in documents for token in tokens]
        inputs = np.concatenate([batch.inputs[batch.documents != PADDING] for batch in batches])
        np.testing.assert_array_equal(inputs, stream[:-1])
    targets = sum(int(batch.loss_mask.sum()) for batch in batches)
    assert targets == sum(sum(loss[: CONTEXT + 1]) for _, loss in documents)
    assert statistics.documents == statistics.records == len(rows)
    again, _ = heldout_batches(config, tmp_path, encode, CONTEXT, BATCH, max_tokens=10**6)
    assert_same(again, batches)
    first, _ = heldout_batches(config, tmp_path, encode, CONTEXT, BATCH, max_tokens=1)
    assert_same(first, batches[:1])


def test_the_attention_mask_is_causal_and_within_documents() -> None:
    documents = np.array([[0, 0, 1, 1, 1, 2], [0, 0, 0, 1, PADDING, PADDING]], np.int32)
    mask = np.array(document_attention_mask(mx.array(documents)))
    assert mask.shape == (2, 1, 6, 6)
    assert mask.dtype == bool
    for b in range(2):
        for i in range(6):
            for j in range(6):
                assert mask[b, 0, i, j] == (j <= i and documents[b, i] == documents[b, j])


def test_masked_attention_equals_attention_on_each_document_alone() -> None:
    documents = np.array([[0, 0, 0, 1, 1]], np.int32)
    q, k, v = (mx.random.normal((1, 2, 5, 8), key=mx.random.key(i)) for i in range(3))
    attend = mx.fast.scaled_dot_product_attention
    together = attend(q, k, v, scale=0.3, mask=document_attention_mask(documents))
    for part in (slice(0, 3), slice(3, 5)):
        q_part, k_part, v_part = q[:, :, part], k[:, :, part], v[:, :, part]
        alone = attend(q_part, k_part, v_part, scale=0.3, mask="causal")
        np.testing.assert_allclose(np.array(together[:, :, part]), np.array(alone), atol=1e-6)


def conversation(question: str, answer: str) -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def chat_mixture(folder: Path, rows: list[dict]) -> Mixture:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = [{"name": "a", "weight": 1, "files": ["a.jsonl"]}]
    config = MixtureConfig.from_dict({"format": "chat", "sources": tables})
    return Mixture(config, folder, encode_chat, seed=0)


LONG = conversation("q" * 100, "never seen")  # its answer begins beyond the context
# The question takes all but one target: an answer's first character is still learnt.
BARELY = conversation("q" * (CONTEXT - 2), "yes")


def test_conversations_without_a_target_are_skipped_counted_and_resumed(tmp_path: Path) -> None:
    rows = [LONG, BARELY, LONG, conversation("q", "ok"), LONG]
    packed = PackedBatches(chat_mixture(tmp_path, rows), CONTEXT, BATCH, split_documents=False)
    states, batches = [], []
    for _ in range(12):
        states.append(json.dumps(packed.state_dict()))
        batches.append(next(packed))
    for batch in batches:
        assert batch.loss_mask.any()
        for row in range(BATCH):
            for number in range(batch.documents[row].max() + 1):
                assert batch.loss_mask[row, batch.documents[row] == number].any()
    counts = packed.statistics().sources["a"]
    assert counts.records == counts.documents + counts.skipped.total()
    assert set(counts.skipped) == {Reason.BEYOND_CONTEXT}
    assert abs(counts.skipped[Reason.BEYOND_CONTEXT] - counts.documents * 3 / 2) <= 3
    barely = len(encode_chat(BARELY["messages"])[0])
    assert counts.tokens_cut == counts.truncated * (barely - (CONTEXT + 1)) > 0
    resumed = PackedBatches(chat_mixture(tmp_path, rows), CONTEXT, BATCH, split_documents=False)
    resumed.load_state_dict(json.loads(states[5]))
    assert_same(islice(resumed, 7), batches[5:])
    assert resumed.statistics() == packed.statistics()


def test_what_was_cut_away_is_no_token_of_the_source(tmp_path: Path) -> None:
    packed = PackedBatches(chat_mixture(tmp_path, [BARELY]), CONTEXT, BATCH, split_documents=False)
    next(packed)
    counts = packed.statistics().sources["a"]
    assert counts.tokens == counts.documents * (CONTEXT + 1)


def test_no_conversation_with_a_target_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    packed = PackedBatches(chat_mixture(tmp_path, [LONG]), CONTEXT, BATCH, split_documents=False)
    wanted = (
        r"source 'a' has no usable record .*; left out: \d+ records? "
        r"\(every answer lies beyond the context\)\..*data\.context="
    )
    with pytest.raises(UserError, match=wanted):
        next(packed)
    source = SourceConfig.from_dict({"name": "a", "weight": 1, "files": ["a.jsonl"]}, "chat")
    with pytest.raises(UserError, match=f"held out: {wanted}"):
        heldout_batches(source, tmp_path, encode_chat, CONTEXT, BATCH, max_tokens=10**6)


def test_held_out_conversations_without_a_target_are_skipped_and_counted(tmp_path: Path) -> None:
    chat_mixture(tmp_path, [LONG, BARELY, conversation("q", ""), conversation("q", "ok")])
    source = SourceConfig.from_dict({"name": "a", "weight": 1, "files": ["a.jsonl"]}, "chat")
    (batch,), counts = heldout_batches(source, tmp_path, encode_chat, CONTEXT, BATCH, 10**6)
    assert batch.loss_mask.sum() == 1 + 3
    assert counts.documents == 2 and counts.truncated == 1
    assert counts.skipped == {Reason.BEYOND_CONTEXT: 1, Reason.EMPTY_ANSWER: 1}


def test_a_batch_without_a_target_is_passed_over(tmp_path: Path) -> None:
    """With one position to a batch, the step from one document to the next would be a batch."""
    mixture = make_mixture(tmp_path, "text")
    batches = islice(PackedBatches(mixture, 1, 1, split_documents=True), 100)
    assert all(batch.loss_mask.any() for batch in batches)
