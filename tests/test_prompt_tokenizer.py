"""The quick tokenizer of `generate` and `chat` against transformers and mlx-lm, by one folder."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import chat_templates
import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from mobilemoe_mlx import chat_format
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
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


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_text_waits_for_neither_transformers_nor_mlx_lm(
    tmp_path: Path, tiny_args: ModelArgs, kernel_is_built: None, command: str
) -> None:
    folder = tmp_path / "model"
    write_random_checkpoint(folder, tiny_args, quantized=True)
    saved(byte_level(), folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    arguments = [command, str(folder), "--engine", "cpu"]
    arguments += ["--prompt", "a"] if command == "generate" else []
    code = (
        "import sys; from mobilemoe_mlx.cli.main import main\n"
        f"status = main({arguments})\n"
        "print(status, sorted({'torch', 'transformers', 'mlx_lm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="a\n",
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert done.stdout.endswith("0 []\n"), done.stderr


CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "import os <|eot|>"}],
    [
        {"role": "system", "content": " 日本 {{ messages }}"},
        {"role": "user", "content": "a\n"},
        {"role": "assistant", "content": "<think>b</think>  \tcafé"},
        {"role": "user", "content": "\ufdd0?"},
    ],
)
# What else transformers gives a template, in the manner of templates that use it.
OTHERS = (
    "{{ strftime_now('%Y') }}{{ messages | tojson(indent=2) }}{{ bos_token }}{{ eos_token }}"
    "{% set n = namespace(last='', self=1) %}{% for m in messages %}{% set n.last = m.content %}"
    "{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}{{ n.last ~ n.self }}"
    "{{ dict(a=1, **{'b': 2}) | tojson }}{{ dict.fromkeys(['x']) }}{{ tools is none }}"
    "{{ documents is none }}{{ pad_token is defined }}{{ '<é&>' | tojson }}",
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n  {{ m.content | upper }}\n"
    "  {% endif %}\n{% endfor %}\n{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}"
    "{% endgeneration %}{{ x }}",
)
FAILING = (
    "{{ 1 + 'a' }}",
    "{{ messages[9].content }}",
    "{% if %}",
    "{{ messages.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ dict.__call__.__globals__ }}",
    "{{ raise_exception('not like this') }}",
    "{% set n = namespace(_x=1) %}{{ n }}",
    "{% set n = namespace() %}{% set n._x = 1 %}{{ n }}",
    "{% include 'x' %}",
)


def said(tokenizer: PromptTokenizer | ChatTokenizer, messages: list[dict[str, str]]) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


@pytest.mark.parametrize(
    "template",
    [
        chat_format.CHAT_TEMPLATE,
        chat_templates.TOOLS,
        chat_templates.TOOLS_AS_TEXT,
        chat_templates.TRIMMING,
        chat_templates.MARKED,
        chat_templates.FORGETTING,
        *OTHERS,
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_chats_as_transformers_writes_them(tmp_path: Path, template: str, several: bool) -> None:
    folder = saved(byte_fallback(False), tmp_path)
    named = [{"name": "tool_use", "template": "-"}, {"name": "default", "template": template}]
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = named if several else template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    quick, whole = load_prompt_tokenizer(folder), load_tokenizer(folder)
    assert quick.has_chat_template and whole.has_chat_template
    for messages in CONVERSATIONS:
        assert said(quick, messages) == said(whole, messages)
        assert quick.decode(said(quick, messages)) == whole.decode(said(whole, messages))


@pytest.mark.parametrize("template", FAILING)
def test_what_a_template_may_not_do(tmp_path: Path, template: str) -> None:
    folder = saved(byte_level(), tmp_path)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    sentences = []
    for tokenizer in (load_prompt_tokenizer(folder), load_tokenizer(folder)):
        with pytest.raises(UserError, match=r"The chat template (fails|refuses)") as error:
            said(tokenizer, CONVERSATIONS[0])
        sentences.append(str(error.value))
    ours, theirs = (sentence.split(": ")[:2] for sentence in sentences)
    assert ours[0] == theirs[0] and ours[1].split(".")[0] == theirs[1].split(".")[0]


def test_templates_without_a_default(tmp_path: Path) -> None:
    folder = saved(byte_level(), tmp_path)
    named = [{"name": "rag", "template": "-"}]
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": named}), encoding="utf-8"
    )
    with pytest.raises(UserError, match="none of them is called 'default': rag"):
        said(load_prompt_tokenizer(folder), CONVERSATIONS[0])
