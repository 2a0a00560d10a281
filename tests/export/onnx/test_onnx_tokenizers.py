"""Texts in onnxruntime-genai get the tokens of Hugging Face's tokenizers, for both kinds."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest
from test_onnx_genai import run
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.onnx.genai import tokenizer_class

COUNT = 3000
# Words, runs of blanks, digits, signs, other alphabets, combining marks, emoji, controls.
PIECES = (
    *("the", "def", "return", "of", "import", "self", "wrap", "text", "Éa", "ﬁ", "straße"),
    *(" ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n", "\u00a0", "\u3000"),
    *("0", "12", "345", "3.14", "1,000", "_", "__init__", "->", "!=", "...", "'s", "'LL", "(x)"),
    *(
        "русский",
        "日本語",
        "العربية",
        "हिन्दी",
        "e\u0301",
        "👍🏽",
        "👨‍👩‍👧",
        "\u200b",
        "\x07",
        "▁",
        "\ufeff",
    ),
)
# genai 0.18 splits such blanks otherwise than Llama 3's pattern does: a line of blanks alone before
# a line that begins with one (docs/onnx.md).
BLANK_LINE = re.compile(r"[\r\n][^\S\r\n]+[\r\n]+[^\S\r\n]")


def texts() -> list[str]:
    rng = random.Random(0)
    found = ["".join(rng.choices(PIECES, k=rng.randint(1, 12))) for _ in range(COUNT - 400)]
    # And characters of any kind.
    planes = [*range(0x20, 0x250), *range(0x4E00, 0x4E40), *range(0x1F600, 0x1F620)]
    return found + [
        "".join(map(chr, rng.choices(planes, k=rng.randint(1, 20)))) for _ in range(400)
    ]


def byte_level(folder: Path) -> Path:
    """A tokenizer of Llama 3's kind: its splitting pattern, bytes spelled as letters."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=470,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the def return of import self wrap text"] * 3 + texts()[:500], trainer
    )
    tokenizer.add_special_tokens([AddedToken("<|begin_of_text|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    files.write_json(folder / "tokenizer_config.json", {"bos_token": "<|begin_of_text|>"})
    return folder


@pytest.mark.parametrize("kind", ["GemmaTokenizer", "PreTrainedTokenizerFast"])
def test_genai_encodes_as_tokenizers_does(exported, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(exported("portable"), tmp_path / "it")
    if kind == "PreTrainedTokenizerFast":
        byte_level(folder)
    assert tokenizer_class(folder) == kind
    settings = files.read_json(folder / "tokenizer_config.json")
    files.write_json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": kind})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    given = texts()
    if kind == "PreTrainedTokenizerFast":
        given = [text for text in given if not BLANK_LINE.search(text)]
        assert len(given) > 0.98 * COUNT
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in given]
    (found,) = run(folder, {"do": "encode", "texts": given, "beginning": False})
    wrong = [text for text, ids, own in zip(given, found, wanted, strict=True) if ids != own]
    assert not wrong, f"{len(wrong)} of {COUNT}, as {wrong[:3]!r}"


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"decoder is WordPiece.*encode texts otherwise"):
        tokenizer_class(tmp_path)
