"""onnxruntime-genai from PyPI, as a process: it loads our folders and generates MLX's tokens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilemoe_mlx.engines import Engine, open_engine
from mobilemoe_mlx.generate import encode_prompt
from mobilemoe_mlx.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("kernel_is_built")

CLIENT = Path(__file__).with_name("genai_client.py")
ANDROID = Path(__file__).parents[3] / "docs" / "android.md"
PROMPTS = [
    np.random.default_rng(seed).integers(6, 480, count).tolist()
    for seed, count in enumerate((1, 2, 29, 60))
]
COUNT = 24
TEXT = "def wrap(self, text):\n    return  'é' "
MESSAGES = [
    {"role": "user", "content": "Wrap this text."},
    {"role": "assistant", "content": "import textwrap"},
    {"role": "user", "content": "And  now?"},
]


def run(folder: Path, *tasks: dict[str, Any]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-I", str(CLIENT), str(folder)],
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning either
    return json.loads(done.stdout)


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    """Up to the end of an answer, which it has."""
    session, tokens = engine.session(), []
    logits = session.feed(prompt)
    while len(tokens) < count:
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] in engine.args.eos_token_id:
            break
        logits = session.feed(tokens[-1:])
    return tokens


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Engine:
    return open_engine(checkpoint, "mlx")


@pytest.mark.parametrize(
    ("form", "choices"),
    [
        ("fused", {"accuracy_level": 1}),
        ("fused", {"accuracy_level": 1, "activations": "float16"}),
        ("portable", {}),
        ("portable", {"activations": "float16"}),
    ],
)
def test_genai_generates_mlx_tokens(
    exported: Any, checkpoint: Path, reference: Engine, form: str, choices: dict[str, Any]
) -> None:
    folder = exported(form, **choices)
    if "activations" in choices:  # near ties in the routing fall differently in float16
        reference = open_engine(folder, "onnx")
    wanted = [greedy(reference, prompt, COUNT) for prompt in PROMPTS]
    assert len({*wanted[-1]}) > COUNT // 2  # a text that says something of the model
    tokenizer = load_tokenizer(checkpoint)
    shared, growing, chunks, once_more, chat, batch, texts, plain, text = run(
        folder,
        *(
            {"do": "generate", "prompts": [PROMPTS[-1]], "count": COUNT, **options}
            for options in (
                {"past_present_share_buffer": True},
                {"past_present_share_buffer": False},
                {"chunk_size": 7},
            )
        ),
        {"do": "rewound", "prompt": PROMPTS[-1], "count": COUNT},
        {"do": "chat", "messages": MESSAGES, "count": COUNT},
        {"do": "generate", "prompts": PROMPTS, "count": COUNT, "chunk_size": 1000},
        {"do": "encode", "texts": [TEXT], "beginning": True},
        {"do": "encode", "texts": [TEXT], "beginning": False},
        {"do": "decode", "ids": tokenizer.encode(TEXT)},
    )
    assert [shared, growing, chunks, [once_more]] == [wanted[-1:]] * 4
    # A batch, padded on the right, which genai does not cut into chunks. A row that ended early
    # goes on with padding, and in float16 many rows are rounded otherwise than one.
    if "activations" in choices:
        batch, wanted = [row[:5] for row in batch], [tokens[:5] for tokens in wanted]
    assert [row[: len(tokens)] for row, tokens in zip(batch, wanted, strict=True)] == wanted
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    answer = greedy(reference, ids, COUNT)
    assert chat == [
        tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False),
        ids,
        answer,
    ]
    assert texts == [encode_prompt(tokenizer, TEXT)]
    assert plain == [texts[0][1:]]
    assert text == TEXT


def test_genai_runs_qmoe_as_the_engine_does(exported: Any) -> None:
    folder = exported("qmoe")
    engine = open_engine(folder, "onnx")
    (found,) = run(folder, {"do": "generate", "prompts": [PROMPTS[-1]], "count": COUNT})
    assert found == [greedy(engine, PROMPTS[-1], COUNT)]


def test_a_folder_from_a_mac_opens_with_the_settings_of_the_android_page(
    exported: Any, tmp_path: Path
) -> None:
    """Another library lies in it, under the name that libraries have on a phone."""
    folder = shutil.copytree(exported("fused"), tmp_path / "it")
    (library,) = folder.glob("libmobilemoe_ort.*")
    library.rename(folder / "libmobilemoe_ort.so")
    config = folder / "genai_config.json"
    config.write_text(config.read_text().replace(library.name, "libmobilemoe_ort.of_a_mac"))
    found = re.search(r"config\.overlay\((.*?)\);", ANDROID.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    pieces = re.sub(r"\+ threads\b", '"2"', found[1])
    overlay = "".join(json.loads(piece) for piece in re.findall(r'"(?:\\.|[^"])*"', pieces))
    code = (
        "import sys, onnxruntime_genai as og\n"
        "config = og.Config(sys.argv[1])\n"
        "config.overlay(sys.argv[2])\n"
        "og.Model(config)\n"
    )
    for settings, opens in ((overlay, True), ("{}", False)):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, str(folder), settings],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == opens, done.stderr
