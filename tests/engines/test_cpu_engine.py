"""The CPU engine: MLX's and PyTorch's logits and texts, however it is fed, and what it refuses."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_engines import damaged

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.checkpoint.rewrite import convert
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.cpu_kernel import library
from mobilemoe_mlx.engines import default_engine, open_engine
from mobilemoe_mlx.engines.cpu import CPUEngine
from mobilemoe_mlx.errors import DamagedModel, UserError
from mobilemoe_mlx.generate import Statistics, Step, encode_prompt, open_with_tokenizer, stream
from mobilemoe_mlx.generation_options import GenerationOptions

pytestmark = pytest.mark.usefixtures("kernel_is_built")

TOKENS = np.random.default_rng(3).integers(0, 480, 90).tolist()


def exact(folder: Path, **options: object) -> CPUEngine:
    engine = open_engine(folder, "cpu", precision="exact", **options)
    assert isinstance(engine, CPUEngine)
    return engine


@pytest.fixture(scope="module")
def logits(int4_folder: Path) -> np.ndarray:
    """float32 [tokens, vocabulary], at once, on one thread."""
    return exact(int4_folder, threads=1).session().feed(TOKENS, all_logits=True)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# What it computes


def test_logits_are_those_of_pytorch_and_mlx(int4_folder: Path, logits: np.ndarray) -> None:
    model = load_torch_model(int4_folder)
    theirs = np.asarray(model(torch.tensor([TOKENS])).logits[0])
    # Both compute in float32: 1e-5 is the limit of the kernel's own tests.
    assert relative_error(logits, theirs) < 1e-5
    mlx = open_engine(int4_folder, "mlx").session().feed(TOKENS, all_logits=True)
    assert relative_error(logits, mlx) < 1e-5
    assert (logits.dtype, logits.shape) == (np.float32, (90, 480))


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("cuts", [[1], [89], [5, 6, 50], list(range(1, 90))])
def test_any_way_to_feed_gives_the_same_bits(
    int4_folder: Path, logits: np.ndarray, threads: int, cuts: list[int]
) -> None:
    session = exact(int4_folder, threads=threads).session()
    parts = [part.tolist() for part in np.split(np.array(TOKENS), cuts)]
    found = np.concatenate([session.feed(part, all_logits=True) for part in parts])
    np.testing.assert_array_equal(found, logits)
    assert session.position == len(TOKENS)


def test_rewind(int4_folder: Path, logits: np.ndarray) -> None:
    session = exact(int4_folder).session(context=100)
    session.feed([*TOKENS[:40], 7, 7, 7])
    session.rewind(40)
    np.testing.assert_array_equal(session.feed(TOKENS[40:]), logits[-1:])
    session.rewind(0)
    np.testing.assert_array_equal(session.feed(TOKENS, True), logits)
    with pytest.raises(UserError, match="Cannot rewind to token 91"):
        session.rewind(91)


def test_two_sessions_at_once(int4_folder: Path, logits: np.ndarray) -> None:
    engine = exact(int4_folder)
    wanted = [logits, engine.session().feed(TOKENS[::-1], True)]
    found: list[list[np.ndarray]] = [[], []]

    def work(index: int) -> None:
        session, tokens = engine.session(), TOKENS[:: (1, -1)[index]]
        for start in range(0, 90, 9):
            found[index].append(session.feed(tokens[start : start + 9], True))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        np.testing.assert_array_equal(np.concatenate(found[index]), wanted[index])


@pytest.mark.parametrize("precision", ["int16", "int8"])
@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
def test_other_precisions_and_caches_come_near(
    int4_folder: Path, logits: np.ndarray, precision: str, cache: str
) -> None:
    """Of most tokens: where two experts score nearly alike, rounding may choose the other."""
    engine = open_engine(int4_folder, "cpu", precision=precision, cache=cache)
    found = engine.session().feed(TOKENS, all_logits=True)
    errors = [relative_error(a, b) for a, b in zip(found, logits, strict=True)]
    limit = max(
        {"int16": 1e-3, "int8": 5e-2}[precision],
        {"float32": 0.0, "float16": 1e-3, "int8": 3e-2}[cache],
    )
    assert 0 < np.median(errors) < limit
    assert f"{precision})" in engine.describe()


def test_shards_and_mlx_form_compute_the_same(
    int4_folder: Path, logits: np.ndarray, tmp_path: Path
) -> None:
    convert(int4_folder, tmp_path / "shards", max_shard_bytes=50_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    convert(int4_folder, tmp_path / "mlx", to="mlx")
    for name in ("shards", "mlx"):
        np.testing.assert_array_equal(exact(tmp_path / name).session().feed(TOKENS, True), logits)


def test_weights_lie_in_the_file(int4_folder: Path) -> None:
    engine = exact(int4_folder)
    assert engine.tensors.arrays
    for array in engine.tensors.arrays.values():
        assert not array.flags.owndata and not array.flags.writeable


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no large pages here"
)
def test_large_pages_are_asked_for(int4_folder: Path) -> None:
    engine = exact(int4_folder)
    assert engine.tensors.arrays
    flags = re.findall(
        rf"{re.escape(str(int4_folder))}/\S+\.safetensors\n(?:\w+: .*\n)*VmFlags:(.*)",
        Path("/proc/self/smaps").read_text(),
    )
    assert flags and any("hg" in names.split() for names in flags)


# Text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "seed": 3, "top_k": 40},
        {"temperature": 1.0, "seed": 11, "top_p": 0.9, "min_p": 0.01, "stop": ("e",)},
    ],
)
@pytest.mark.parametrize("prompt", ["import os", "def f(x):\n", "The quick brown fox", "é"])
def test_exact_text_is_mlx_text(int4_folder: Path, options: dict, prompt: str) -> None:
    texts = []
    for name, own in (("mlx", {}), ("cpu", {"precision": "exact"})):
        engine, tokenizer = open_with_tokenizer(int4_folder, name, **own)
        tokens = encode_prompt(tokenizer, prompt)
        chosen = GenerationOptions(max_tokens=60, **options)
        items = list(stream(engine.session(), tokenizer, tokens, chosen))
        assert isinstance(items[-1], Statistics)
        texts.append(([i.text for i in items if isinstance(i, Step)], items[-1].finish_reason))
    assert texts[0] == texts[1]


def test_the_default_engine(
    int4_folder: Path, bf16_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert default_engine(int4_folder) == "cpu"
    assert default_engine(bf16_folder) == "mlx"
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_engine(int4_folder) == "mlx"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main.main([*arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_lines_options(int4_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["generate", str(int4_folder), "--prompt", "import", "--max-tokens", "20"]
    mlx = run(capsys, *line, "--engine", "mlx")
    cpu = run(capsys, *line, "--engine", "cpu", "--precision", "exact", "--threads", "1")
    assert (mlx[0], cpu[0]) == (0, 0)
    assert mlx[1] == cpu[1] != ""
    for extra, message in (
        (["--engine", "cup"], "no engine 'cup' (did you mean 'cpu'?)"),
        (["--engine", "mlx", "--threads", "2"], "The engine 'mlx' has no option 'threads'"),
        (["--engine", "cpu", "--precision", "int4"], "no precision 'int4' (did you mean 'int"),
        (["--engine", "cpu", "--threads", "17"], "17 threads: the CPU engine takes 1 to 16"),
    ):
        status, out, err = run(capsys, *line, *extra)
        assert (status, out) == (2, "")
        assert message in err


# What it refuses


def refused(match: str, call: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=match):
        call()


def test_what_is_no_int4_checkpoint(bf16_folder: Path, tmp_path: Path) -> None:
    refused("is BF16, and the CPU engine .* --quantize", lambda: exact(bf16_folder))
    foreign = tmp_path / "gguf"
    foreign.mkdir()
    (foreign / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    refused("no config.json", lambda: exact(foreign))


def test_a_configuration_that_contradicts_the_tensors(int4_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    shutil.copytree(int4_folder, folder)
    config = (folder / "config.json").read_text(encoding="utf-8")
    for old, new, message in (
        ('"num_experts_per_tok": 2', '"num_experts_per_tok": 8', "num_experts_per_tok"),
        ('"hidden_size": 64', '"hidden_size": 128', "model.embed_tokens.qweight"),
        ('"attention_bias": false', '"attention_bias": true', "attention_bias"),
        ('"rope_type": "llama3"', '"rope_type": "yarn"', "rope_type is 'yarn'"),
    ):
        assert old in config
        (folder / "config.json").write_text(config.replace(old, new), encoding="utf-8")
        refused(message, lambda: exact(folder))


def test_sizes_beyond_the_kernels(tmp_path: Path) -> None:
    args = ModelArgs(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=288,
        intermediate_size=32,
        intermediate_size_mlp=32,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=40,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=(2,),
    )
    write_random_checkpoint(tmp_path / "wide", args, seed=0, quantized=True)
    refused("cannot run on the CPU engine: 1 heads of 288", lambda: exact(tmp_path / "wide"))


def test_options(int4_folder: Path) -> None:
    refused("no precision 'int9'", lambda: open_engine(int4_folder, "cpu", precision="int9"))
    refused("no cache 'int16'", lambda: open_engine(int4_folder, "cpu", cache="int16"))
    refused("0 threads: .* 1 to 16", lambda: open_engine(int4_folder, "cpu", threads=0))
    refused("no option 'thread'.*'threads'", lambda: open_engine(int4_folder, "cpu", thread=2))
    refused("sparc", lambda: open_engine(int4_folder, "cpu", cpu_path="sparc"))
    assert "portable" in open_engine(int4_folder, "cpu", cpu_path="portable").describe()


def test_a_cache_that_is_too_short(int4_folder: Path, logits: np.ndarray) -> None:
    session = exact(int4_folder).session(context=50)
    refused("90 tokens do not fit into a context of 50", lambda: session.feed(TOKENS))
    session.feed(TOKENS[:50])
    refused("51 tokens do not fit", lambda: session.feed([1]))
    refused("this model takes 1 to 256", lambda: exact(int4_folder).session(257))


def test_a_file_that_shrinks_while_it_is_mapped(int4_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    shutil.copytree(int4_folder, folder)
    session = exact(folder).session()
    session.feed([1, 2, 3])
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    refused("model.safetensors became shorter while it was in use", lambda: session.feed([4]))
    assert session.position == 3
    refused("truncated", lambda: exact(folder))


@pytest.mark.parametrize("precision", ["exact", "int16", "int8"])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.input_layernorm.weight",
        "model.layers.0.feed_forward.router.weight",
        "model.layers.0.feed_forward.expert_bias",
        "model.norm.weight",
        "model.layers.0.feed_forward.experts.down_scale",
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_tensor_is_named(
    int4_folder: Path, tmp_path: Path, precision: str, name: str, value: float
) -> None:
    folder = damaged(int4_folder, tmp_path / "it", name, value)
    refused(
        name.replace(".", r"\."),
        lambda: open_engine(folder, "cpu", precision=precision).session().feed([0, 3]),
    )


@pytest.mark.parametrize("precision", ["exact", "int16", "int8"])
def test_numbers_that_outgrow_float32(int4_folder: Path, tmp_path: Path, precision: str) -> None:
    folder = damaged(int4_folder, tmp_path / "it", "model.norm.weight", 3e38)
    session = open_engine(folder, "cpu", precision=precision).session()
    with pytest.raises(DamagedModel, match="though every weight is finite"):
        for token in range(100):
            session.feed([token])


# What it needs


def test_without_a_library(
    int4_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / library.PATH.name)
    line = ["generate", str(int4_folder), "--prompt", "import", "--max-tokens", "3"]
    status, out, err = run(capsys, *line, "--engine", "cpu")
    assert (status, out) == (2, "")
    assert "The CPU engine is not there: its library is built when mobilemoe-mlx is" in err
    assert "if there is a C++ compiler then. Install one (" in err
    assert default_engine(int4_folder) == "mlx"
    assert run(capsys, *line)[0] == 0
    library.PATH.write_bytes(b"not a library")
    refused("cannot be loaded .* build it again", lambda: exact(int4_folder))


def test_another_interface(int4_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilemoe_mlx.cpu_kernel.structures.ABI_VERSION", 99)
    refused("this package needs 99: build it again", lambda: exact(int4_folder))
