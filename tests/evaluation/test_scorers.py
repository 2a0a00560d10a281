"""Scorers of every engine: PyTorch's log-likelihoods and greedy tokens, in whatever batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from scoring_cases import greedy, reference, scoring_requests
from small_model import small_args
from varied_model import write_varied

from mobilemoe_mlx.adapters.adapter_file import save_adapter
from mobilemoe_mlx.adapters.attach import attach
from mobilemoe_mlx.adapters.base_digest import base_digest
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.checkpoint.rewrite import convert
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.errors import DamagedModel, UserError
from mobilemoe_mlx.evaluation import batches, packed_forward
from mobilemoe_mlx.evaluation.mlx_scorer import MLXScorer
from mobilemoe_mlx.evaluation.open_scorer import open_scorer
from mobilemoe_mlx.evaluation.scorer import (
    GenerationRequest,
    LogLikelihood,
    Scorer,
    ScoringRequest,
)
from mobilemoe_mlx.evaluation.session_scorer import SessionScorer
from mobilemoe_mlx.generation_options import GenerationOptions

CONTEXT = 128
LIMIT = 1e-4  # of an engine that computes in float32: the sum over a continuation
REQUESTS = scoring_requests(480, CONTEXT)


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divides the short texts here as long ones are divided."""
    monkeypatch.setattr(batches, "_TREE", 64)
    monkeypatch.setattr(batches, "_KEEPING", 64)


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """An INT4 checkpoint of three layers that says different things after different texts."""
    args = small_args(
        vocab_size=480, bos_token_id=1, eos_token_id=(2,), max_position_embeddings=CONTEXT
    )
    return write_varied(tmp_path_factory.mktemp("varied") / "int4", args, tokenizer_folder)


@pytest.fixture(scope="module")
def folders(
    varied: Path, bf16_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Checkpoints of both layouts and a converted one, and an adapter."""
    work = tmp_path_factory.mktemp("models")
    convert(varied, work / "converted", to="mlx")
    model = load_model(bf16_folder)
    config = AdapterConfig(modules=("attention", "experts", "router"))
    attach(model, config, 0)
    mx.random.seed(0)
    model.update(
        tree_map(lambda p: p + 0.05 * mx.random.normal(p.shape), model.trainable_parameters())
    )
    base = base_digest(bf16_folder)
    save_adapter(work / "adapter", model.trainable_parameters(), config, base, num_layers=2)
    return {
        "int4": varied,
        "bf16": bf16_folder,
        "converted": work / "converted",
        "adapter": work / "adapter",
    }


@pytest.fixture(scope="module")
def wanted(folders: dict[str, Path]) -> Callable[[str], list[LogLikelihood]]:
    """PyTorch's answers of a model."""
    found: dict[str, list[LogLikelihood]] = {}

    def answers(name: str) -> list[LogLikelihood]:
        if name not in found:
            adapters = [(folders["adapter"], 1.0)] if name == "adapter" else []
            folder = folders["bf16" if adapters else name]
            found[name] = reference(load_torch_model(folder, adapters=adapters), REQUESTS)
        return found[name]

    return answers


def score(scorer: Scorer, batch_tokens: int | None = None) -> list[LogLikelihood]:
    if batch_tokens is not None:
        scorer.batch_tokens = batch_tokens
    answers: dict[int, LogLikelihood] = {}
    for batch in scorer.scoring_batches(REQUESTS):
        found = scorer.log_likelihoods([REQUESTS[i] for i in batch.indices], batch.shared)
        answers.update(zip(batch.indices, found, strict=True))
    return [answers[i] for i in range(len(REQUESTS))]


def check(found: list[LogLikelihood], wanted: list[LogLikelihood], limit: float = LIMIT) -> None:
    assert max(abs(a.value - b.value) for a, b in zip(found, wanted, strict=True)) < limit
    assert [a.is_greedy for a in found] == [b.is_greedy for b in wanted]


# Log-likelihoods


@pytest.mark.parametrize("batch_tokens", [32, 2048])
@pytest.mark.parametrize("name", ["int4", "bf16", "adapter"])
def test_mlx_gives_pytorchs(
    name: str, batch_tokens: int, folders: dict[str, Path], wanted: Any
) -> None:
    adapters = [(folders["adapter"], 1.0)] if name == "adapter" else []
    scorer = open_scorer(folders["bf16" if adapters else name], "mlx", adapters=adapters)
    assert isinstance(scorer, MLXScorer)
    check(score(scorer, batch_tokens), wanted(name))
    if batch_tokens == 32:  # what six questions begin with is kept from batch to batch
        assert {batch.shared for batch in scorer.scoring_batches(REQUESTS)} >= {0, 40}


@pytest.mark.usefixtures("kernel_is_built")
def test_the_cpu_engine_gives_pytorchs(folders: dict[str, Path], wanted: Any) -> None:
    for name in ("int4", "converted"):
        check(score(open_scorer(folders[name], "cpu", precision="exact"), 32), wanted("int4"))


@pytest.mark.usefixtures("kernel_is_built")
@pytest.mark.parametrize(("precision", "limit"), [("int16", 1e-3), ("int8", 5e-2)])
def test_rounded_activations_come_near(
    precision: str, limit: float, folders: dict[str, Path], wanted: Any
) -> None:
    """By the engine's own limit for logits, per token: of most, where no expert is another."""
    found = score(open_scorer(folders["int4"], "cpu", precision=precision))
    errors, sizes = [], []
    for answer, other, request in zip(found, wanted("int4"), REQUESTS, strict=True):
        errors.append(abs(answer.value - other.value) / len(request.continuation))
        sizes.append(other.value / len(request.continuation))
    assert 0 < np.median(errors) < limit * np.std(sizes)


@pytest.mark.usefixtures("kernel_is_built")
@pytest.mark.parametrize("form", ["portable", "fused"])
def test_onnx_exports_give_pytorchs(
    form: str, folders: dict[str, Path], wanted: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    from mobilemoe_mlx.export.onnx.folder import export_onnx
    from mobilemoe_mlx.export.onnx.options import ExportOptions

    options = ExportOptions(form=form, context=CONTEXT)
    folder = export_onnx(folders["int4"], tmp_path / form, options).folder
    exact = {"precision": "exact"} if form == "fused" else {}
    check(score(open_scorer(folder, "onnx", **exact)), wanted("int4"))


def test_a_session_of_mlx_gives_the_same(folders: dict[str, Path], wanted: Any) -> None:
    opened = open_scorer(folders["int4"], "mlx")
    check(score(SessionScorer(opened.engine, opened.tokenizer), 32), wanted("int4"))


@pytest.mark.parametrize("scores", [1, 3000, 1 << 25])
@pytest.mark.parametrize("fast", [True, False])
def test_attention_in_parts_and_in_mlxs_own_form(
    fast: bool,
    scores: int,
    folders: dict[str, Path],
    wanted: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a Mac runs, and long trees."""
    monkeypatch.setattr(packed_forward, "_SCORES", scores)
    if not fast:
        monkeypatch.setattr(packed_forward.linux_cpu, "applies_to", lambda *arrays: False)
    check(score(open_scorer(folders["int4"], "mlx"), 200), wanted("int4"))


@pytest.mark.parametrize("engine", ["mlx", "cpu"])
def test_a_batch_depends_on_nothing_else(
    engine: str, folders: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    """Bit for bit: whatever was computed before, and in another process."""
    if engine == "cpu":
        request.getfixturevalue("kernel_is_built")
    one, other = (open_scorer(folders["int4"], engine) for _ in range(2))
    one.batch_tokens = other.batch_tokens = 32
    divided = one.scoring_batches(REQUESTS)
    assert divided == other.scoring_batches(REQUESTS) and len(divided) > 4

    def answers(scorer: Scorer, batch: Any) -> list[LogLikelihood]:
        return scorer.log_likelihoods([REQUESTS[i] for i in batch.indices], batch.shared)

    forwards = [answers(one, batch) for batch in divided]
    assert [answers(other, batch) for batch in divided[::-1]][::-1] == forwards


# Generations


PROMPTS = [request.context[:30] for request in REQUESTS if len(request.context) > 4][::4]


def generate(scorer: Scorer, requests: list[GenerationRequest]) -> list[list[int]]:
    answers: dict[int, list[int]] = {}
    for batch in scorer.generation_batches(requests):
        found = scorer.generate([requests[i] for i in batch.indices], batch.shared)
        answers.update(zip(batch.indices, found, strict=True))
    return [answers[i] for i in range(len(requests))]


@pytest.mark.usefixtures("kernel_is_built")
@pytest.mark.parametrize("engine", ["mlx", "cpu"])
@pytest.mark.parametrize("batch_tokens", [40, 2048])
def test_answers_are_pytorchs_until_they_end(
    engine: str, batch_tokens: int, folders: dict[str, Path]
) -> None:
    options = {"precision": "exact"} if engine == "cpu" else {}
    scorer = open_scorer(folders["int4"], engine, **options)
    scorer.batch_tokens = batch_tokens
    model = load_torch_model(folders["int4"])
    expected = []
    requests = []
    for number, prompt in enumerate(PROMPTS):
        answer = greedy(model, prompt, 12)
        stop: tuple[str, ...] = ()
        if number % 2:  # a stop string that the answer has in its middle
            text = scorer.tokenizer.decode(answer[4:6], skip_special_tokens=False)
            stop = (text,) if text.isascii() else ()
        length = 3 + number % 10
        requests.append(GenerationRequest(prompt, GenerationOptions(max_tokens=length, stop=stop)))
        expected.append(ended(scorer, answer[:length], stop))
    assert generate(scorer, requests) == expected
    assert len({len(answer) for answer in expected}) > 3


def ended(scorer: Scorer, answer: list[int], stop: tuple[str, ...]) -> list[int]:
    """Up to the first token with which it has an end token or a stop string."""
    for count in range(1, len(answer) + 1):
        text = scorer.tokenizer.decode(answer[:count], skip_special_tokens=False)
        if answer[count - 1] in scorer.tokenizer.eos_token_ids or any(s in text for s in stop):
            return answer[:count]
    return answer


@pytest.mark.parametrize("kind", ["mlx", "session"])
def test_sampled_answers_depend_on_their_seed_alone(kind: str, folders: dict[str, Path]) -> None:
    scorer: Scorer = open_scorer(folders["int4"], "mlx")
    if kind == "session":
        scorer = SessionScorer(scorer.engine, scorer.tokenizer)
    requests = [
        GenerationRequest(prompt, GenerationOptions(max_tokens=8, temperature=1.0, seed=seed))
        for prompt in PROMPTS[:2]
        for seed in (0, 1, 2)
    ]
    together = generate(scorer, requests)
    assert together == [generate(scorer, [request])[0] for request in requests]
    assert len({tuple(answer) for answer in together[:3]}) > 1


# What is refused


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ScoringRequest((), (1,)), "Request 1 has an empty context or continuation"),
        (ScoringRequest((1,), ()), "Request 1 has an empty context or continuation"),
        (ScoringRequest((1,), (480, 2)), "token 480, but the model knows 0 to 479"),
        (ScoringRequest((1,) * 128, (1, 1)), "Request 1 needs 129 tokens, and the model takes 128"),
    ],
)
def test_requests_that_cannot_be_scored(
    request_: ScoringRequest, message: str, folders: dict[str, Path]
) -> None:
    scorer = open_scorer(folders["int4"], "mlx")
    with pytest.raises(UserError, match=message):
        scorer.scoring_batches([REQUESTS[0], request_])


def test_prompts_that_leave_no_room(folders: dict[str, Path]) -> None:
    scorer = open_scorer(folders["int4"], "mlx")
    options = GenerationOptions(max_tokens=100)
    with pytest.raises(UserError, match="Request 0 needs 130 tokens"):
        scorer.generation_batches([GenerationRequest((1,) * 30, options)])
    with pytest.raises(UserError, match="Request 0 has an empty prompt"):
        scorer.generation_batches([GenerationRequest((), options)])


def test_a_model_that_outgrows_its_type_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    opened = open_scorer(folders["bf16"], "mlx")
    model = opened.engine.model  # type: ignore[attr-defined]
    model.model.norm.weight = model.model.norm.weight * np.inf
    with pytest.raises(DamagedModel, match="not finite"):
        score(opened)
    with pytest.raises(DamagedModel, match="not finite"):
        generate(opened, [GenerationRequest(PROMPTS[0], GenerationOptions(max_tokens=2))])
