"""A very small family on made-up text: two layers, four stages of eight steps, seconds to train."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]

RECIPE = """
name = "test"

[model]
preset = "tiny"
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 32
intermediate_size_mlp = 64
num_local_experts = 8
num_experts_per_tok = 2
vocab_size = 480
max_position_embeddings = 64

[common]
batch_size = 4
checkpoint_every = 2
[common.compute]
dtype = "float32"
[common.data]
context = 32
heldout_tokens = 256
[common.optimizer]
peak_lr = 1e-2
warmup_steps = 2

[stages.pretrain]
tokens = 1024
[stages.pretrain.data]
mixture = "text.toml"
heldout = ["heldout-text.jsonl"]

[stages.midtrain]
tokens = 1024
[stages.midtrain.data]
mixture = "text.toml"
document_mask = true
[stages.midtrain.optimizer]
schedule = "linear"

[stages.sft]
tokens = 1024
[stages.sft.data]
mixture = "chat.toml"
heldout = ["heldout-chat.jsonl"]

[stages.qat]
tokens = 1024
quantize = true
[stages.qat.data]
mixture = "chat.toml"
heldout = ["heldout-chat.jsonl"]
document_mask = true
seed = 1
"""

WORDS = ("the", "cat", "dog", "bird", "sees", "finds", "a", "small", "red", "house", "tree", "and")


def write_family(folder: Path, tokenizer_folder: Path) -> Path:
    """The recipe with its mixtures and data in `folder`; returns the recipe's path.

    The text source is a few steps long, so that runs cross the ends of its epochs.
    """
    rng = random.Random(0)

    def sentence(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(words))

    def text(count: int) -> list[dict[str, Any]]:
        return [{"text": sentence(rng.randrange(5, 40))} for _ in range(count)]

    def chat(count: int) -> list[dict[str, Any]]:
        turns = (
            {
                "messages": [
                    {"role": "user", "content": (question := sentence(rng.randrange(1, 3)))},
                    {"role": "assistant", "content": question},
                ]
            }
            for _ in range(count)
        )
        return list(turns)

    folder.mkdir(parents=True, exist_ok=True)
    for kind, make, sizes in (("text", text, (6, 4, 20)), ("chat", chat, (12, 7, 20))):
        for name, count in zip((kind, f"more-{kind}", f"heldout-{kind}"), sizes, strict=True):
            lines = (json.dumps(record) for record in make(count))
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        (folder / f"{kind}.toml").write_text(
            f'format = "{kind}"\n'
            f'[[sources]]\nname = "one"\nweight = 2.0\nfiles = ["{kind}.jsonl"]\n'
            f'[[sources]]\nname = "two"\nweight = 1.0\nfiles = ["more-{kind}.jsonl"]\n'
        )
    path = folder / "recipe.toml"
    path.write_text(RECIPE + f'\n[tokenizer]\npath = "{tokenizer_folder}"\n')
    return path


def bare_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe alone, without data, for tests that make their own batches."""
    path = folder / "recipe.toml"
    path.write_text(RECIPE)
    return load_recipe(path, overrides)


def random_batch(rows: int, context: int, vocabulary: int, seed: int = 0) -> Batch:
    """Rows of one to three documents and some padding; a third of the targets do not count."""
    rng = np.random.default_rng(seed)
    documents = np.sort(rng.integers(0, 3, (rows, context)), axis=1).astype(np.int32)
    for row in range(rows):
        documents[row, context - rng.integers(0, context // 4) :] = -1
    real = documents >= 0
    inputs, targets = (
        np.where(real, rng.integers(0, vocabulary, (rows, context)), 0).astype(np.int32)
        for _ in range(2)
    )
    loss_mask = (real & (rng.random((rows, context)) < 2 / 3)).astype(np.float32)
    return Batch(inputs, targets, loss_mask, documents)


def losses(run: Path, stage: str) -> dict[int, float]:
    """The training losses of a stage by step; fails when a step was recorded twice."""
    rows = [row for row in read_metrics(run / stage / "metrics.jsonl") if "loss" in row]
    by_step = {row["step"]: row["loss"] for row in rows}
    assert len(by_step) == len(rows), f"{stage} has steps that were recorded twice"
    return by_step


def environment(cache: Path) -> dict[str, str]:
    """For a process of its own: this checkout, no network, a cache of `datasets` in `cache`."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(cache),
    }


def mobilemoe(*arguments: Path | str, first: str = "") -> list[str]:
    """The command line of `mobilemoe` with these arguments, which runs the statements `first`."""
    if sys.platform == "darwin":  # exact comparisons are for the CPU, as in conftest.py
        first = f"import mlx.core as mx\nmx.set_default_device(mx.cpu)\n{first}"
    entry = ["-m", "mobilemoe_mlx.cli.main"]
    if first:
        first = f"from mobilemoe_mlx import mlx_on_linux\nmlx_on_linux.prepare()\n{first}"
        start = "import sys\nfrom mobilemoe_mlx.cli.main import main\nsys.exit(main(sys.argv[1:]))"
        entry = ["-c", f"{first}\n{start}"]
    return [sys.executable, *entry, *map(str, arguments)]


def run_command(command: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Run to the end, output captured."""
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(cache), timeout=600
    )
