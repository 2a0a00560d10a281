"""The quick tokenizer of `generate` against transformers and mlx-lm, on the same folder."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.generate import encode_prompt
from mobilemoe_mlx.prompt_tokenizer import PromptTokenizer, load_prompt_tokenizer
from mobilemoe_mlx.tokenizer import ChatTokenizer, load_tokenizer

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot|>", "<|日|>"]
TEXTS = (
    "import os",
    " leading, and  two",
    "naïve café, 日本語 — 👩‍👩‍👧 𝔘nicode ?s (x) !\n\n\t0\0",
    "<|begin_of_text|>a<|eot|>b",
)


def byte_level() -> Tokenizer:
    """Of Llama 3's kind."""
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    raw.train_from_iterator(TEXTS, trainer)
    return raw


def byte_fallback(strip: bool) -> Tokenizer:
    """Of SentencePiece's kind, with Llama 2's rule about a text's first space or without it."""
    pieces = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefgimportsé", "日本"]
    raw = Tokenizer(BPE({p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    raw.add_special_tokens(SPECIAL)
    return raw


def saved(raw: Tokenizer, folder: Path) -> Path:
    first = SPECIAL[0]
    raw.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, raw.token_to_id(first))]
    )
    raw.save(str(folder / "tokenizer.json"))
    names = '{"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|日|>"}}'
    (folder / "tokenizer_config.json").write_text(names, encoding="utf-8")
    return folder


@pytest.fixture(params=["byte level", "byte fallback", "byte fallback, strip"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PromptTokenizer, ChatTokenizer]:
    strip = request.param.endswith("strip")
    raw = byte_level() if request.param == "byte level" else byte_fallback(strip)
    quick = load_prompt_tokenizer(saved(raw, tmp_path), [7])
    assert isinstance(quick, PromptTokenizer)
    return quick, load_tokenizer(tmp_path, [7])


def test_the_same_tokens(both: tuple[PromptTokenizer, ChatTokenizer]) -> None:
    quick, whole = both
    assert len(quick) == len(whole)
    assert quick.bos_token == whole.bos_token == SPECIAL[0]
    assert quick.eos_token_ids == whole.eos_token_ids and len(quick.eos_token_ids) == 4
    for text in TEXTS:
        assert encode_prompt(quick, text) == encode_prompt(whole, text)
        assert quick.encode(text, add_special_tokens=False) == whole.encode(
            text, add_special_tokens=False
        )


def test_the_same_text(both: tuple[PromptTokenizer, ChatTokenizer]) -> None:
    """Of any tokens, halves of characters and control tokens among them."""
    quick, whole = both
    draw = random.Random(0)
    sequences = [draw.choices(range(len(quick)), k=40) for _ in range(50)]
    sequences += [quick.encode(text) for text in TEXTS]
    for tokens in sequences:
        stream, theirs = quick.detokenizer, whole.detokenizer
        theirs.text, theirs.offset = ".", 1  # in the middle of a text
        texts = ["", ""]
        for token in tokens:
            for i, detokenizer in enumerate((stream, theirs)):
                detokenizer.add_token(token)
                texts[i] += detokenizer.last_segment
        # mlx-lm ends with an error where bytes of a control token are held back: so all of it by
        # the definition, and its own text as far as that goes.
        stream.finalize()
        texts[0] += stream.last_segment
        # The one difference: mlx-lm writes the byte 0 of a byte-level piece as its letter, U+0100.
        assert texts[0].replace("\0", "\u0100").startswith(texts[1].replace("\0", "\u0100"))
        assert len(texts[0]) - len(texts[1]) <= 40 and texts[1]


def test_other_kinds_get_the_whole_tokenizer(tmp_path: Path) -> None:
    raw = Tokenizer(WordLevel({name: i for i, name in enumerate([*SPECIAL, "a"])}, "a"))
    assert isinstance(load_prompt_tokenizer(saved(raw, tmp_path)), ChatTokenizer)


def test_generate_waits_for_neither_transformers_nor_mlx_lm(
    tmp_path: Path, tiny_args: ModelArgs, kernel_is_built: None
) -> None:
    write_random_checkpoint(tmp_path / "model", tiny_args, quantized=True)
    saved(byte_level(), tmp_path / "model")
    arguments = ["generate", str(tmp_path / "model"), "--prompt", "a", "--engine", "cpu"]
    code = (
        "import sys; from mobilemoe_mlx.cli.main import main\n"
        f"status = main({arguments})\n"
        "print(status, sorted({'torch', 'transformers', 'mlx_lm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout.endswith("0 []\n"), done.stderr
