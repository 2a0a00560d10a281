"""Generation: what text comes out, when it comes, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_wrapped
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from mobilemoe_mlx.checkpoint.load_save import save
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.engines import Session
from mobilemoe_mlx.engines.mlx import MLXEngine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.generate import (
    Statistics,
    Step,
    StopStrings,
    encode_prompt,
    stream,
)
from mobilemoe_mlx.generation_options import MIN_TEMPERATURE, GenerationOptions
from mobilemoe_mlx.model import Model

ARGS = ModelArgs(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=32,
    intermediate_size_mlp=64,
    num_local_experts=6,
    num_experts_per_tok=2,
    vocab_size=320,
    max_position_embeddings=64,
    rope_scaling=None,
    bos_token_id=0,
    eos_token_id=(1,),
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>"]
WORLD = "naïve café, 日本語 — 👩‍👩‍👧 𝔘nicode ?s (x) !"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    """A tokenizer of Llama 3's kind."""
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [inspect.getsource(random)],
        BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return _wrapped(raw, tmp_path_factory.mktemp("byte_level"))


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    """A tokenizer of SentencePiece's kind: the bytes of unknown characters are tokens."""
    pieces = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefgENDSTOP,?!("]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    raw = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    raw.add_special_tokens(SPECIAL)
    return _wrapped(raw, tmp_path_factory.mktemp("byte_fallback"))


def _wrapped(raw: Tokenizer, folder: Path) -> TokenizerWrapper:
    bos, eos = SPECIAL
    PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos).save_pretrained(
        folder
    )
    return load_wrapped(folder, {"clean_up_tokenization_spaces": False})


@pytest.fixture(scope="module")
def model() -> Model:
    mx.random.seed(3)
    return Model(ARGS)


class Scripted:
    """Stands for a model: says the given tokens, whatever it reads."""

    def __init__(self, script: list[int], prompt: int = 1) -> None:
        self.args = dataclasses.replace(ARGS, max_position_embeddings=512)
        self.layers = [None]
        self._script, self._prompt = script, prompt

    def make_cache(self) -> list[KVCache]:
        return [KVCache()]

    def parameters(self) -> dict[str, mx.array]:
        return {}

    def __call__(self, tokens: mx.array, cache: list[KVCache]) -> mx.array:
        nothing = mx.zeros((1, 1, tokens.shape[1], 1))
        cache[0].update_and_fetch(nothing, nothing)
        place = cache[0].offset - self._prompt
        token = self._script[place] if 0 <= place < len(self._script) else ARGS.eos_token_id[0]
        logits = mx.where(mx.arange(ARGS.vocab_size) == token, 0.0, -50.0)
        return mx.broadcast_to(logits, (1, tokens.shape[1], ARGS.vocab_size))


def session_of(model: Any) -> Session:
    return MLXEngine(model).session()


def say(
    tokenizer: TokenizerWrapper, script: list[int], **options: Any
) -> tuple[list[Step], Statistics]:
    scripted: Any = Scripted(script)
    return split(stream(session_of(scripted), tokenizer, [0], GenerationOptions(**options)))


def split(items: Iterator[Step | Statistics]) -> tuple[list[Step], Statistics]:
    *before, statistics = items
    steps = [item for item in before if isinstance(item, Step)]
    assert len(steps) == len(before)
    assert isinstance(statistics, Statistics)
    return steps, statistics


def joined(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)


def bytes_as_tokens(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    """`text` at one token a byte, whatever the kind of tokenizer."""
    if "<0x00>" in tokenizer.get_vocab():
        return [tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>") for b in text.encode()]
    alphabet = {b: c for c, b in _byte_characters()}
    return [tokenizer.convert_tokens_to_ids(alphabet[b]) for b in text.encode()]


def _byte_characters() -> Iterator[tuple[str, int]]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    yield from ((chr(b), b) for b in plain)
    yield from ((chr(256 + i), b) for i, b in enumerate(others))


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest) -> TokenizerWrapper:
    return request.getfixturevalue(request.param)


# Text that arrives


@pytest.mark.parametrize("text", [WORLD, " leading, and  two", "\n\n x", "SELECT ?s WHERE { ?s }"])
def test_text_arrives_whole_and_untouched(tokenizer: TokenizerWrapper, text: str) -> None:
    for script in (bytes_as_tokens(tokenizer, text), tokenizer.encode(text)):
        script = [t for t in script if t not in ARGS.eos_token_id and t != ARGS.bos_token_id]
        steps, statistics = say(tokenizer, script)
        assert joined(steps) == text
        assert [step.token for step in steps] == [*script, ARGS.eos_token_id[0]]
        assert not any("\ufffd" in step.text for step in steps)
        assert statistics.finish_reason == "end token"
        assert statistics.generated_tokens == len(script) + 1


def test_half_a_character_waits_for_its_other_half(tokenizer: TokenizerWrapper) -> None:
    steps, _ = say(tokenizer, bytes_as_tokens(tokenizer, "aé日👩z"))
    assert [step.text for step in steps[:-1]] == (
        ["a", "", "é", "", "", "日", "", "", "", "👩", "z"]
    )


def test_half_a_character_at_the_end_is_a_replacement_character(
    tokenizer: TokenizerWrapper,
) -> None:
    script = bytes_as_tokens(tokenizer, "a日")[:-1]
    for options in ({}, {"max_tokens": len(script)}):
        assert joined(say(tokenizer, script, **options)[0]) == "a\ufffd"


def test_a_token_that_the_tokenizer_lacks_is_a_replacement_character(
    byte_fallback: TokenizerWrapper,
) -> None:
    assert len(byte_fallback) < ARGS.vocab_size
    a = byte_fallback.convert_tokens_to_ids("a")
    assert joined(say(byte_fallback, [a, 319, a])[0]) == "a\ufffda"


def test_streamed_text_is_what_the_tokenizer_decodes(
    byte_level: TokenizerWrapper, model: Model
) -> None:
    assert len(byte_level) == ARGS.vocab_size
    compared = 0
    for seed in range(4):
        options = GenerationOptions(max_tokens=60, temperature=1.0, seed=seed)
        steps, _ = split(stream(session_of(model), byte_level, [0, 5, 9], options))
        tokens = [s.token for s in steps if s.token not in ARGS.eos_token_id]
        # The one difference: mlx-lm's detokenizer writes the byte 0 as its stand-in, U+0100.
        assert joined(steps) == byte_level.decode(tokens).replace("\0", "\u0100")
        compared += len(tokens)
    assert compared > 60


# Stop strings


def first_complete(text: str, stop: list[str]) -> str | None:
    """The definition: character by character, until the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - max(map(len, found))]
    return None


def test_stop_strings_in_any_pieces() -> None:
    rng = random.Random(0)
    stopped = 0
    for _ in range(3000):
        stop = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        text = "".join(rng.choices("abc", k=rng.randint(0, 12)))
        expected = first_complete(text, stop)
        stops, out, position = StopStrings(stop), "", 0
        while position < len(text) and not stops.found:
            piece = text[position : position + rng.randint(1, 5)]
            position += len(piece)
            out += stops.add(piece)
            if not stops.found:
                # Held back: exactly the longest end that a stop string may begin with.
                begins = (i for i in range(position + 1) if _may_begin(text[i:position], stop))
                assert out == text[: next(begins)]
        assert stops.found == (expected is not None)
        assert out + stops.finish() == (text if expected is None else expected)
        stopped += stops.found
    assert 500 < stopped < 2500


def _may_begin(end: str, stop: list[str]) -> bool:
    return not end or any(s.startswith(end) and s != end for s in stop)


def test_stop_string_over_several_tokens(tokenizer: TokenizerWrapper) -> None:
    script = bytes_as_tokens(tokenizer, "a日 STabSTOP,b")
    steps, statistics = say(tokenizer, script, stop=("STOP", "never"))
    assert joined(steps) == "a日 STab"
    assert statistics.finish_reason == "stop string"
    assert len(steps) == statistics.generated_tokens < len(script)
    # A beginning that the end of the answer leaves unfinished is part of the answer.
    steps, statistics = say(tokenizer, script, stop=("b!",))
    assert joined(steps) == "a日 STabSTOP,b"
    assert statistics.finish_reason == "end token"


# Tokens that are chosen


def test_greedy_takes_the_likeliest_token(byte_level: TokenizerWrapper, model: Model) -> None:
    prompt = [0, 40, 41, 42]
    runs = [
        split(
            stream(
                session_of(model), byte_level, prompt, GenerationOptions(max_tokens=12, seed=seed)
            )
        )[0]
        for seed in (None, 1)
    ]
    tokens = [step.token for step in runs[0]]
    assert runs[0] == runs[1]
    for i, token in enumerate(tokens):
        scores = model(mx.array([prompt + tokens[:i]]))[0, -1]
        assert mx.all(scores[token] >= scores.max() - 1e-4)


def test_a_seed_repeats_a_sample(byte_level: TokenizerWrapper, model: Model) -> None:
    def sample(seed: int, **options: Any) -> list[int]:
        chosen = GenerationOptions(max_tokens=16, temperature=1.0, seed=seed, **options)
        return [
            step.token for step in split(stream(session_of(model), byte_level, [0, 7], chosen))[0]
        ]

    filters: list[dict[str, Any]] = [
        {},
        {"top_p": 0.9},
        {"top_k": 50},
        {"min_p": 0.05},
        {"top_k": ARGS.vocab_size},
        {"repetition_penalty": 1.3},
    ]
    for options in filters:
        assert sample(1, **options) == sample(1, **options)
        assert sample(1, **options) != sample(2, **options)
    assert sample(1, top_k=ARGS.vocab_size) == sample(1)


def test_narrow_filters_are_greedy(byte_level: TokenizerWrapper, model: Model) -> None:
    def tokens(**options: Any) -> list[int]:
        chosen = GenerationOptions(max_tokens=10, seed=4, **options)
        return [
            step.token for step in split(stream(session_of(model), byte_level, [0, 7], chosen))[0]
        ]

    greedy = tokens()
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert tokens(temperature=1.0, **narrow) == greedy
    assert tokens(temperature=1.0) != greedy
    assert tokens(temperature=MIN_TEMPERATURE) == greedy


def test_repetition_penalty_avoids_repetition(byte_level: TokenizerWrapper, model: Model) -> None:
    def tokens(penalty: float) -> list[int]:
        chosen = GenerationOptions(max_tokens=16, repetition_penalty=penalty)
        return [
            step.token for step in split(stream(session_of(model), byte_level, [0, 7], chosen))[0]
        ]

    assert len(set(tokens(1.0))) < 16
    avoiding = tokens(1e6)  # so strong that no token of the last 20 can win
    assert len({0, 7, *avoiding}) == 18


# Limits


def test_context_is_a_limit(byte_level: TokenizerWrapper, model: Model) -> None:
    full = ARGS.max_position_embeddings
    for tokens in (full, full + 5):
        with pytest.raises(UserError, match=f"{tokens} tokens, but the model's context is {full}"):
            stream(session_of(model), byte_level, [5] * tokens, GenerationOptions())
    options = GenerationOptions(max_tokens=10, temperature=1.0, seed=0)
    steps, statistics = split(stream(session_of(model), byte_level, [5] * (full - 3), options))
    assert len(steps) == 3
    assert statistics.finish_reason == "context"
    steps, statistics = split(stream(session_of(model), byte_level, [5] * (full - 10), options))
    assert (len(steps), statistics.finish_reason) == (10, "max tokens")


def test_a_cache_counts_toward_the_context_and_grows_by_every_step(
    byte_level: TokenizerWrapper, model: Model
) -> None:
    session = session_of(model)
    options = GenerationOptions(max_tokens=6)
    first, _ = split(stream(session, byte_level, [0, 8, 9], options))
    assert session.position == 3 + len(first)
    rest = [12, 13]
    second, _ = split(stream(session, byte_level, rest, options))
    whole = [0, 8, 9, *(s.token for s in first), *rest]
    assert second == split(stream(session_of(model), byte_level, whole, options))[0]
    with pytest.raises(UserError, match=f"{session.position + 60} tokens, but"):
        stream(session, byte_level, [5] * 60, options)


def test_prompts_that_cannot_be_continued(byte_level: TokenizerWrapper, model: Model) -> None:
    with pytest.raises(UserError, match="The prompt is empty"):
        stream(session_of(model), byte_level, [], GenerationOptions())
    with pytest.raises(UserError, match="The prompt is empty"):
        encode_prompt(byte_level, "")
    for token in (320, -1):
        with pytest.raises(UserError, match=f"token {token}, but the model knows 0 to 319"):
            stream(session_of(model), byte_level, [0, token], GenerationOptions())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("max_tokens", [0, -1]),
        ("temperature", [-0.5, NAN, INF, 1e-9]),
        ("top_p", [0.0, -1.0, 1.01, NAN]),
        ("top_k", [-1]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("repetition_penalty", [0.0, -1.0, NAN, INF]),
        ("seed", [-1, 2**64]),
        ("stop", ["END", ("END", "")]),
    ],
)
def test_senseless_options(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^{option.replace('_', '-')} is .*; it must be"):
            GenerationOptions(**{option: value})


def test_prompt_begins_with_one_begin_of_text() -> None:
    raw = Tokenizer(BPE(vocab={"<s>": 0, "a": 1}, merges=[]))
    raw.add_special_tokens(["<s>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", add_bos_token=True)
    wrapped = TokenizerWrapper(fast)
    expected = fast.encode("a")
    assert encode_prompt(wrapped, "a") == expected
    assert encode_prompt(wrapped, "<s>a") == [0, 1]


# The command


@pytest.fixture(scope="module")
def checkpoint(
    model: Model, byte_level: TokenizerWrapper, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    tokenizer_folder = tmp_path_factory.mktemp("tokenizer")
    byte_level.save_pretrained(tokenizer_folder)
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save(model, folder, tokenizer_folder=tokenizer_folder)
    return folder


def test_generate_command(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("the wörld\n".encode())  # the last newline is the file's, not the prompt's
    outputs = []
    for prompt in (
        ["--prompt", "the wörld"],
        ["--prompt-file", str(file)],
        ["--prompt-file=-"],
        [],
    ):
        stdin = io.TextIOWrapper(io.BytesIO("the wörld".encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main.main(["generate", str(checkpoint), *prompt, "--max-tokens", "8"]) == 0
        captured = capsys.readouterr()
        outputs.append(captured.out)
        assert "Prompt:" in captured.err
        assert "tokens/s" in captured.err
        assert "Peak memory:" in captured.err
    assert outputs[0].strip()
    assert outputs == outputs[:1] * 4


def test_generate_command_says_what_is_wrong(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    for arguments, message in (
        (["--prompt", ""], "The prompt is empty"),
        (["--prompt", "caf\udcff"], "The prompt is not UTF-8 text: character 4 is '\\udcff'"),
        ([], "give --prompt TEXT"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt-file", str(tmp_path / "none")], "cannot be read: No such file"),
        (["--prompt-file", str(latin)], "is not UTF-8 text"),
        (["--prompt", "zq" * 40], "the model's context is 64"),
    ):
        assert main.main(["generate", str(checkpoint), *arguments]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
    assert main.main(["generate", str(checkpoint), "--prompt", "zq" * 30]) == 0
    assert "of the context's 64 tokens: at most" in capsys.readouterr().err
