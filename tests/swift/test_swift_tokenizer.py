"""The Swift package's tokenizer against Hugging Face `tokenizers`: ids, texts, streams."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import unicode_classes
from text_samples import CORPUS, random_texts
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from tokenizers.trainers import BpeTrainer

from mobilemoe_mlx.generate import encode_prompt
from mobilemoe_mlx.prompt_tokenizer import PromptTokenizer, load_prompt_tokenizer
from mobilemoe_mlx.tokenizer import SPECIAL_TOKENS, train_tokenizer

RANDOM_TEXTS = 1200
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Tokens with every flag, ordinary ones and special ones.
ADDED = [
    AddedToken("<|dé|>", special=True),
    AddedToken("<tool>", normalized=True),
    AddedToken("<tool>x", normalized=False),
    AddedToken("word", single_word=True),
    AddedToken("[left]", lstrip=True),
    AddedToken("[right]", rstrip=True, special=True),
    AddedToken("two words", normalized=True),
]


def trained(split: Any, **model: Any) -> Tokenizer:
    """Byte-level, trained on CORPUS, with Llama 3's post-processor."""
    raw = Tokenizer(BPE(**model))
    raw.pre_tokenizer = split
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        CORPUS * 3,
        BpeTrainer(
            vocab_size=1500,
            special_tokens=list(SPECIAL_TOKENS) if model else [],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    raw.add_special_tokens(list(SPECIAL_TOKENS))
    raw.add_tokens(ADDED)
    begin = SPECIAL_TOKENS[0]
    template = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, raw.token_to_id(begin))]
    )
    raw.post_processor = Sequence([ByteLevel(trim_offsets=False), template])
    return raw


def llama3(folder: Path) -> None:
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw = trained(split, ignore_merges=True)
    raw.save(str(folder / "tokenizer.json"))


def gpt2(folder: Path) -> None:
    trained(pre_tokenizers.ByteLevel(add_prefix_space=True)).save(str(folder / "tokenizer.json"))


def own_training(folder: Path) -> None:
    train_tokenizer(CORPUS, 760, folder)


def metaspace(folder: Path) -> None:
    """Of SentencePiece's kind by its newer spelling, without a piece for every byte."""
    train_tokenizer(CORPUS, 760, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": True,
    }
    content["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
    content["model"] |= {"byte_fallback": False, "unk_token": "<unk>", "fuse_unk": True}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    raw = Tokenizer.from_file(str(path))
    raw.add_tokens(ADDED)
    raw.save(str(path))


def llama2(folder: Path) -> None:
    """Of SentencePiece's kind by its older spelling: a space before each text, and none back."""
    train_tokenizer(CORPUS, 760, folder)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.add_tokens(ADDED)
    raw.save(str(folder / "tokenizer.json"))


KINDS = (llama3, gpt2, own_training, metaspace, llama2)


def token_lists(raw: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Of texts, and random ones, in which characters break off."""
    yield from (raw.encode(text).ids for text in texts[:300])
    draw = random.Random(1)
    for _ in range(300):
        yield draw.choices(range(raw.get_vocab_size()), k=draw.randint(1, 30))


def plain_ids(raw: Tokenizer, texts: list[str]) -> list[list[int]]:
    raw.encode_special_tokens = True
    ids = [e.ids for e in raw.encode_batch(texts, add_special_tokens=False)]
    raw.encode_special_tokens = False
    return ids


def streamed(quick: PromptTokenizer, ids: list[int]) -> str:
    stream = quick.detokenizer
    for token in ids:
        stream.add_token(token)
    stream.finalize()
    return stream.last_segment


def write_cases(kind: Callable[[Path], None], folder: Path) -> None:
    folder.mkdir()
    kind(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": SPECIAL_TOKENS[0], "eos_token": {"content": "<|dé|>"}}),
        encoding="utf-8",
    )
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    quick = load_prompt_tokenizer(folder)
    names = [*SPECIAL_TOKENS, *(token.content for token in ADDED)]
    texts = [*CORPUS, *random_texts(RANDOM_TEXTS, 0, names), "".join(CORPUS) * 3]
    texts += [f"{SPECIAL_TOKENS[0]}after it", " ", "\n"]
    plain = plain_ids(raw, texts)
    cases = {
        "beginning": raw.token_to_id(SPECIAL_TOKENS[0]),
        "ends": sorted(quick.eos_token_ids),
        "texts": [
            {"text": text, "plain": ids, "prompt": encode_prompt(quick, text)}
            for text, ids in zip(texts, plain, strict=True)
        ],
        "tokens": [],
    }
    context = raw.encode("a", add_special_tokens=False).ids[-1]
    for ids in token_lists(raw, texts):
        case = {
            "ids": ids,
            "whole": raw.decode(ids, skip_special_tokens=False),
            "kept": raw.decode(ids),
            "stream": raw.decode([context, *ids], skip_special_tokens=False).removeprefix("a"),
        }
        if "\ufffd" in case["whole"] and kind in (own_training, llama2):
            # `tokenizers` makes every byte of a run U+FFFD once one of them is wrong, which cannot
            # be known while the first ones are written. Ours are the bytes that are wrong.
            assert isinstance(quick, PromptTokenizer)
            case = {"ids": ids, "stream": streamed(quick, ids)}
        cases["tokens"].append(case)
    (folder / "cases.json").write_text(json.dumps(cases, ensure_ascii=False), encoding="utf-8")


def test_tokens_and_texts(tmp_path: Path, swift_test: Callable[..., None]) -> None:
    for kind in KINDS:
        write_cases(kind, tmp_path / kind.__name__)
    swift_test("TokenizerCases", MOBILEMOE_TOKENIZER_CASES=str(tmp_path))


def test_the_classes_of_characters() -> None:
    path = Path(__file__).parents[2] / "coreml/Sources/MobileMoE/Text/UnicodeClasses.swift"
    assert path.read_text(encoding="utf-8") == unicode_classes.swift_file()
