"""Engines: what a session computes, where it stands, and what it refuses."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.engines import ENGINES, Session, engine, open_engine
from mobilemoe_mlx.engines.mlx import MLXEngine, MLXSession
from mobilemoe_mlx.errors import DamagedModel, UserError
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.sampling import Sampler

TOKENS = [1, 17, 300, 4, 4, 250, 33, 8, 91, 2]


@pytest.fixture(scope="module", params=["bf16", "int4"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a tokenizer, which no engine needs."""
    source = request.getfixturevalue(f"{request.param}_folder")
    target = tmp_path_factory.mktemp("engines") / request.param
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    return target


@pytest.fixture(scope="module")
def opened(folder: Path) -> MLXEngine:
    found = open_engine(folder, "mlx", dtype=mx.float32)
    assert isinstance(found, MLXEngine)
    return found


@pytest.fixture(scope="module")
def logits(folder: Path) -> np.ndarray:
    """Those of all TOKENS, by the model itself."""
    return np.array(load_model(folder, mx.float32)(mx.array([TOKENS]))[0])


@pytest.mark.parametrize("lot", [1, 2, 3, 512])
@pytest.mark.parametrize("cut", [1, 4, 9])
def test_any_way_to_feed_gives_the_same_logits(
    opened: MLXEngine, logits: np.ndarray, monkeypatch: pytest.MonkeyPatch, lot: int, cut: int
) -> None:
    monkeypatch.setattr(engine, "PREFILL_TOKENS", lot)
    session = opened.session()
    first = session.feed(TOKENS[:cut], all_logits=True)
    assert (first.dtype, first.shape) == (np.float32, (cut, opened.args.vocab_size))
    assert session.position == cut
    last = session.feed(TOKENS[cut:])
    assert last.shape == (1, opened.args.vocab_size)
    np.testing.assert_allclose(first, logits[:cut], atol=1e-5)
    np.testing.assert_allclose(last, logits[-1:], atol=1e-5)
    assert session.position == len(TOKENS)


def test_rewind_forgets(opened: MLXEngine, logits: np.ndarray) -> None:
    session = opened.session()
    session.feed([*TOKENS[:4], 99, 98, 97])
    session.rewind(4)
    assert session.position == 4
    np.testing.assert_allclose(session.feed(TOKENS[4:], True), logits[4:], atol=1e-5)
    session.rewind(0)
    np.testing.assert_allclose(session.feed(TOKENS, True), logits, atol=1e-5)
    for wrong in (-1, len(TOKENS) + 1):
        with pytest.raises(UserError, match=f"Cannot rewind to token {wrong}"):
            session.rewind(wrong)


def test_sessions_do_not_meet(opened: MLXEngine, logits: np.ndarray) -> None:
    one, other = opened.session(), opened.session()
    for token in TOKENS[:-1]:
        one.feed([token])
        other.feed([5])
    np.testing.assert_allclose(one.feed(TOKENS[-1:]), logits[-1:], atol=1e-5)


def test_what_a_session_refuses(opened: MLXEngine) -> None:
    most = opened.args.max_position_embeddings
    for context in (0, -1, most + 1):
        with pytest.raises(UserError, match=f"this model takes 1 to {most}"):
            opened.session(context)
    session = opened.session(context=4)
    for tokens, message in (
        ([], "no token"),
        ([opened.args.vocab_size], "knows 0 to"),
        ([-1], "knows 0 to"),
        ([1] * 5, "do not fit into a context of 4"),
    ):
        with pytest.raises(UserError, match=message):
            session.feed(tokens)
        assert session.position == 0
    session.feed([1, 2, 3, 4])
    with pytest.raises(UserError, match="5 tokens do not fit"):
        session.feed([5])


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3, "top_k": 40}])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_the_interfaces_own_loop_says_what_mlx_says(
    opened: MLXEngine, options: dict[str, Any], penalty: float
) -> None:
    """What an engine generates by `feed` alone; MLX's own way keeps the GPU busy meanwhile."""
    chosen = GenerationOptions(repetition_penalty=penalty, **options)
    texts = []
    for way in (MLXSession.generate, Session.generate):
        session = opened.session()
        done: list[tuple[int, int]] = []
        sampler = Sampler(chosen, opened.args.vocab_size)
        tokens = [*way(session, TOKENS, sampler, 12, lambda *now, done=done: done.append(now))]
        assert (done[0], done[-1]) == ((0, len(TOKENS)), (len(TOKENS), len(TOKENS)))
        assert len(TOKENS) + 11 <= session.position <= len(TOKENS) + 12
        texts.append(tokens)
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12


def test_unknown_engines_and_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no engine 'mxl' \(did you mean 'mlx'\?\)"):
        open_engine(folder, "mxl")
    with pytest.raises(UserError, match="'mlx' has no option 'threads'"):
        open_engine(folder, "mlx", threads=2)
    monkeypatch.setitem(ENGINES, "gone", ("mobilemoe_mlx.engines.no_such_file", "Gone"))
    with pytest.raises(UserError, match="The engine 'gone' is not installed"):
        open_engine(folder, "gone")
    with pytest.raises(UserError, match="no folder"):
        open_engine(folder / "absent", "mlx")


# Weights that are not numbers


def damaged(source: Path, target: Path, name: str, value: float) -> Path:
    shutil.copytree(source, target)
    tensors, metadata = mx.load(str(target / "model.safetensors"), return_metadata=True)
    array = tensors[name].astype(mx.float32)
    array[(0,) * array.ndim] = value
    tensors[name] = array.astype(tensors[name].dtype)
    mx.eval(tensors)
    mx.save_safetensors(str(target / "new.safetensors"), tensors, metadata)
    (target / "new.safetensors").rename(target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bf16", "model.layers.0.self_attn.q_proj.weight"),
        ("bf16", "model.layers.1.feed_forward.shared_expert.down_proj.weight"),
        ("bf16", "model.embed_tokens.weight"),
        ("bf16", "model.norm.weight"),
        ("int4", "model.layers.1.input_layernorm.weight"),
        ("int4", "model.layers.0.feed_forward.router.weight"),
        ("int4", "model.norm.weight"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_tensor_is_named(
    kind: str,
    name: str,
    value: float,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = damaged(request.getfixturevalue(f"{kind}_folder"), tmp_path / "it", name, value)
    with pytest.raises(DamagedModel, match=name.replace(".", r"\.")):
        open_engine(folder, "mlx").session().feed([0, 3])
    assert main.main(["generate", str(folder), "--prompt", "def f", "--max-tokens", "3"]) == 2
    captured = capsys.readouterr()
    assert name in captured.err
    assert captured.out == ""
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand again\n"))
    assert main.main(["chat", str(folder), "--max-tokens", "2"]) == 2
    assert capsys.readouterr().err.count(name) == 1


def test_a_damaged_scale_is_named(int4_folder: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    folder = damaged(int4_folder, tmp_path / "it", name, float("nan"))
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        open_engine(folder, "mlx")


def test_numbers_that_outgrow_their_type(bf16_folder: Path, tmp_path: Path) -> None:
    folder = damaged(bf16_folder, tmp_path / "it", "model.norm.weight", 3e38)
    with pytest.raises(DamagedModel, match="though every weight is finite"):
        session = open_engine(folder, "mlx").session()
        for token in range(100):
            session.feed([token])


def test_options_of_the_cpu_engine_say_what_it_needs(bf16_folder):
    with pytest.raises(UserError, match=r"'mlx', which runs this.*'expert_memory'.*--quantize"):
        open_engine(bf16_folder, expert_memory=1)


@pytest.mark.parametrize("memory", ["500KB", -1, 1.5, True])
def test_expert_memory_is_a_number_of_bytes(int4_folder, memory):
    with pytest.raises(UserError, match=r"expert_memory is .*; it must be a number of bytes"):
        open_engine(int4_folder, "cpu", expert_memory=memory)


@pytest.mark.parametrize("token", ["a", 1.5, None])
def test_tokens_are_whole_numbers(int4_folder, token):
    with pytest.raises(UserError, match="Tokens to feed are whole numbers"):
        open_engine(int4_folder, "mlx").session().feed([token])
