from __future__ import annotations

import ast
import inspect
import json
import random
import shutil
import socket
import textwrap
from pathlib import Path

import pytest
import sentencepiece
from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer, TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tokenizer import (
    BEGIN_OF_TEXT,
    EOT,
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    encode_text,
    eos_token_ids,
    load_tokenizer,
    train_tokenizer,
)

VOCAB_SIZE = 1500
TRAINING_TEXTS = [inspect.getsource(module) for module in (ast, inspect, json, random, textwrap)]

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\t\t\n\n  \n",
    "a",
    " leading and trailing  ",
    "def f(x):\n\tif x:\n        return   x  \n\n\n",
    "SELECT ?s WHERE { ?s ?p ?o . } , don ' t !",
    "naïve café, Ελληνικά, русский, 中文字, ไทย, עברית, \u0301combining",
    "emoji 🎉👩\u200d👩\u200d👧🏽\u200d🚀 flags 🇫🇷, cut 🎉",
    "\x00\x01\x7f\u00a0\u2028\ufeff\r\n\ufffd|",
    "<|eot|> <0x41> <unk> <|begin_of_text|><|header_start|>user",
    "12345 3.14e-10 0x7fffffff",
    "=" * 77 + "\n" + " " * 77 + "x",
    "\U0010ffff\U000e0041",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_tokenizer(TRAINING_TEXTS, VOCAB_SIZE, folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> TokenizerWrapper:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as published: Llama-3 style byte-level BPE, clean-up on, an unknown model type."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TRAINING_TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL_TOKENS])
    bos = (BEGIN_OF_TEXT, tokenizer.token_to_id(BEGIN_OF_TEXT))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A", special_tokens=[bos]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": "<|end_of_text|>",
        "clean_up_tokenization_spaces": True,
        "model_max_length": 8,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "mobilemoe"}))
    return folder


def random_texts(tokenizer: TokenizerWrapper, count: int) -> list[str]:
    """Texts that are hard for a BPE: runs, cut-off pieces, and arbitrary characters."""
    rng = random.Random(0)
    pieces = [p.replace("\u2581", " ") for p in tokenizer.convert_ids_to_tokens(range(264, 1400))]
    alphabets = ["ab ", "aeiou -=_", "  \n\t-", "=-#*.", "é🎉中 x"]
    texts = []
    for _ in range(count):
        alphabet = rng.choice(alphabets)
        texts.append("".join(rng.choices(alphabet, k=rng.randint(0, 60))))
        texts.append("".join(p[: rng.randint(1, 9)] for p in rng.choices(pieces, k=20)))
        points = (
            rng.choice((rng.randrange(0x2581), rng.randrange(0xE000, 0x110000))) for _ in "x" * 9
        )
        texts.append("".join(map(chr, points)))
    return texts


def test_tokenizer_json_encodes_as_sentencepiece(folder: Path, trained: TokenizerWrapper) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert len(trained) == reference.get_piece_size() == VOCAB_SIZE
    for text in [*TEXTS, *TRAINING_TEXTS, *random_texts(trained, 1000)]:
        tokens = encode_text(trained, text)
        assert tokens == reference.encode(text), text
        assert trained.decode(tokens) == reference.decode(tokens) == text


def test_streaming_gives_the_text_and_no_half_characters(trained: TokenizerWrapper) -> None:
    assert isinstance(trained.detokenizer, SPMStreamingDetokenizer)
    for text in [*TEXTS, *random_texts(trained, 50)]:
        detokenizer = trained.detokenizer
        segments = []
        for token in encode_text(trained, text):
            detokenizer.add_token(token)
            segments.append(detokenizer.last_segment)
        detokenizer.finalize()
        segments.append(detokenizer.last_segment)
        assert "".join(segments) == detokenizer.text == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in segment for segment in segments)


def test_only_the_sentencepiece_space_mark_is_lost(trained: TokenizerWrapper) -> None:
    assert trained.decode(encode_text(trained, "a\u2581b")) == "a b"


@pytest.mark.parametrize("kind", ["folder", "published_folder"])
def test_document_text_never_becomes_a_control_token(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(kind))
    control = set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    text = "a " + " ".join(SPECIAL_TOKENS) + "".join(SPECIAL_TOKENS)
    tokens = encode_text(tokenizer, text)
    assert not control.intersection(tokens)
    assert tokenizer.decode(tokens) == text
    # Ordinary encoding is left as it was: control tokens are read, and BOS comes first.
    bos, eot = tokenizer.convert_tokens_to_ids([BEGIN_OF_TEXT, EOT])
    assert tokenizer.encode(EOT) == [bos, eot]


def test_lone_surrogates_are_replaced(trained: TokenizerWrapper) -> None:
    text = "a\ud800b\ud83c\udf89"  # the last two are one character, in halves
    assert trained.decode(encode_text(trained, text)) == "a\ufffdb🎉"


def test_published_layout_loads_without_clean_up(
    published_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    tokenizer = load_tokenizer(published_folder, stop_ids=[7])
    for text in ("SELECT ?s", "a , b . I 'm do n't !", "🎉 é"):
        assert tokenizer.decode(encode_text(tokenizer, text)) == text
    ends = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", EOT])
    assert eos_token_ids(tokenizer) == sorted(ends)
    assert tokenizer.eos_token_ids == {*ends, 7}


def test_trained_folder_loads_elsewhere(folder: Path, trained: TokenizerWrapper) -> None:
    other = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": " Hi\n"}]
    expected = "<|begin_of_text|><|header_start|>user<|header_end|>\n\n Hi\n<|eot|>"
    prompt = "<|header_start|>assistant<|header_end|>\n\n"
    assert other.apply_chat_template(messages, tokenize=False) == expected
    assert (
        trained.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        == expected + prompt
    )
    assert other.encode("x = 1") == [other.bos_token_id, *encode_text(trained, "x = 1")]
    assert trained.eos_token_ids == set(eos_token_ids(other)) == {other.eos_token_id, 5}


def test_python_indentation_is_cheap(trained: TokenizerWrapper) -> None:
    for spaces in (4, 8, 12):
        assert len(encode_text(trained, "\n" + " " * spaces + "return")) <= 4


def test_training_is_deterministic(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(iter(TRAINING_TEXTS), VOCAB_SIZE, tmp_path / "again")
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_training_sample_is_bounded_and_spread(tmp_path: Path) -> None:
    texts = [f"text {i:04d} " + "lorem ipsum dolor " * 10 for i in range(1000)]
    stats = train_tokenizer(texts, 380, tmp_path, max_chars=50_000)
    assert 25_000 < stats["characters"] <= 50_000
    assert stats["texts"] == 250


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 500, "no text to train"),
        ([""], 500, "no text to train"),
        (["abc"], -3, f"size is -3; it must be at least {MIN_VOCAB_SIZE} tokens"),
        (["abc"], 0, "size is 0; it must be at least"),
        (["abc"], MIN_VOCAB_SIZE - 1, "it must be at least"),
        (["abc"], 10**12, "less than 2^31"),
        (
            ["äöü" * 9],
            MIN_VOCAB_SIZE,
            rf"too small for this text: .* at least {MIN_VOCAB_SIZE + 3}",
        ),
        (["abc"], 5000, r"too large for this text, which has \d+ different pieces"),
    ],
)
def test_training_refuses_what_cannot_work(
    texts: list[str], size: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message.replace("^", r"\^")) as error:
        train_tokenizer(texts, size, tmp_path / "out")
    assert "INTERNAL" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bad_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "absent")
    good = (folder / "tokenizer.json").read_bytes()
    for content in (b"", good[:1000], b"[]", b'{"model": {"type": "BPE"}}', b"\x80\x04pickle"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer"):
            load_tokenizer(tmp_path)


def test_remote_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nEvil = object\n")
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


# tokenizer.json decides

OTHER_SETTINGS: dict[str, dict[str, object]] = {
    "llama": {"tokenizer_class": "LlamaTokenizer"},
    "llama fast": {"tokenizer_class": "LlamaTokenizerFast", "legacy": False},
    "gpt2": {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True},
    "unknown": {"tokenizer_class": "NoSuchTokenizer"},
    "flags": {"add_bos_token": False, "add_eos_token": True, "add_prefix_space": True},
    "special": {"split_special_tokens": True, "additional_special_tokens": ["the", "<new>"]},
    "ids": {"added_tokens_decoder": {"9": {"content": EOT, "special": True}}},
    "names": {"eos_token": "<not there>", "unk_token": {"content": "<nor this>"}},
    "length": {"model_max_length": 2, "truncation_side": "left", "padding_side": "left"},
}


@pytest.mark.parametrize("settings", OTHER_SETTINGS)
@pytest.mark.parametrize("kind", ["folder", "published_folder"])
def test_tokenizer_json_decides_whatever_the_settings_say(
    kind: str, settings: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(kind)
    shutil.copytree(source, tmp_path / "it")
    file = tmp_path / "it" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | OTHER_SETTINGS[settings]))
    special = {"eos_token": "<elsewhere>", "bos_token": "</s>"}
    (tmp_path / "it" / "special_tokens_map.json").write_text(json.dumps(special))
    (tmp_path / "it" / "added_tokens.json").write_text(json.dumps({"<new>": 3}))
    tokenizer = load_tokenizer(tmp_path / "it")
    reference = Tokenizer.from_file(str(source / "tokenizer.json"))
    assert len(tokenizer) == reference.get_vocab_size()
    for text in [*TEXTS, f"{BEGIN_OF_TEXT}the{EOT} the <new>"]:
        assert tokenizer.encode(text) == reference.encode(text).ids
        plain = tokenizer.encode(text, add_special_tokens=False)
        assert plain == reference.encode(text, add_special_tokens=False).ids
        assert encode_text(tokenizer, text) == encode_text(load_tokenizer(source), text)
    assert reference.token_to_id(EOT) in tokenizer.eos_token_ids


def test_a_truncation_in_tokenizer_json_cuts_no_text(folder: Path, tmp_path: Path) -> None:
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.enable_truncation(4)
    reference.enable_padding(length=8)
    reference.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("one two three four five") == (
        load_tokenizer(folder).encode("one two three four five")
    )


def test_dropout_in_tokenizer_json_changes_no_token(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "t")
    file = tmp_path / "t" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["dropout"] = 0.5
    file.write_text(json.dumps(content))
    ours, plain = load_tokenizer(tmp_path / "t"), load_tokenizer(folder)
    for _ in range(10):
        assert encode_text(ours, "def return import") == encode_text(plain, "def return import")


def test_ends_of_generation_come_from_every_file(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "it")
    vocabulary = load_tokenizer(folder).get_vocab()
    piece, other = (name for name, index in vocabulary.items() if index in (700, 900))
    settings = tmp_path / "it" / "tokenizer_config.json"
    settings.write_text(json.dumps({"eos_token": {"content": piece}}))
    (tmp_path / "it" / "special_tokens_map.json").write_text(json.dumps({"eos_token": other}))
    ends = {vocabulary[t] for t in ("<|end_of_text|>", EOT, piece, other)}
    assert load_tokenizer(tmp_path / "it", stop_ids=[7]).eos_token_ids == {*ends, 7}


def test_byte_order_marks_are_removed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "it")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = tmp_path / "it" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    template = load_tokenizer(folder).chat_template
    (tmp_path / "it" / "chat_template.jinja").write_text("\ufeff" + template, encoding="utf-8")
    assert load_tokenizer(tmp_path / "it").chat_template == template
